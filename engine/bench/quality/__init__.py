"""Benchmarks of quality: what lossy knobs, bit plans and packed levels cost; speed is measured in `decoding`."""
