"""Benchmarks of decoding and prefill: speed and ceilings, cost of bookkeeping and of a trace. Never imports `quality`."""
