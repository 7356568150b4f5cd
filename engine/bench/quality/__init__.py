"""Benchmarks of quality: what lossy knobs, plans of bits and packed levels cost."""
