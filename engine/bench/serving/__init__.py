"""Benchmarks of the server, with its clients in a process of their own. Never imports the other benchmarks' rooms."""
