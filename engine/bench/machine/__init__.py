"""Benchmarks of what the engine takes from the machine: reads of its disk, and products of its cores."""
