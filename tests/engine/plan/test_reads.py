"""Reads: adjacent parts of an expert are one read, as in the reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine import Checkpoint
from engine.plan.reads import largest_range

Make = Callable[..., Path]


def test_the_parts_of_a_stacked_checkpoint_are_read_apart(checkpoint: Make) -> None:
    source = Checkpoint.open(checkpoint("qwen3_moe"))
    assert largest_range(source) == max(t.nbytes for layer in source.layers for t in layer.tensors)


def test_adjacent_parts_are_joined(checkpoint: Make, store: Make) -> None:
    whole = Checkpoint.open(checkpoint("qwen3_moe", None, True))
    assert largest_range(whole) <= whole.layers[0].expert_bytes
    packed = Checkpoint.open(store("qwen3_moe"))
    assert largest_range(packed) > max(t.nbytes for layer in packed.layers for t in layer.tensors)
