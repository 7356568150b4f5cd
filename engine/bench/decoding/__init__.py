"""Benchmarks of decoding: speed against ceilings, and the overhead of cache bookkeeping and of a trace."""
