"""Benchmarks of decoding: speed against ceilings, and the cost of bookkeeping and of a trace. Never imports `quality`."""
