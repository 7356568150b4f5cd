"""Forecast: speed, memory, disk and times of a model on a machine, before its weights are there, with an interval.

Hit rates come from replays through the engine's own slots, times from few figures of the machine. Only the probes of this
machine import MLX at once.
"""
