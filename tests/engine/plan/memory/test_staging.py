"""Staging: only experts that change on their way need a buffer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Checkpoint, Knobs
from engine.model.backend import backend
from engine.native import core
from engine.plan.banks import plan_banks
from engine.plan.footprint import weights_of
from engine.plan.memory.staging import staging_bytes


@pytest.fixture(scope="module")
def source(checkpoint: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(checkpoint("qwen3_moe", 4))


def staged(source: Checkpoint, tokens: int = 1, **given: object) -> int:
    knobs = Knobs.from_mapping({"cache_gb": weights_of(source, Knobs()).all_experts_gb / 2, **given})
    return staging_bytes(source, knobs, plan_banks(source, knobs), tokens)


@pytest.mark.skipif(backend() != "cpu", reason="floats are widened on the CPU")
def test_staging_follows_its_causes(source: Checkpoint) -> None:
    assert staging_bytes(source, Knobs(), [], 100) == 0
    one, many = staged(source), staged(source, 100)
    assert 0 < one < many
    assert staged(source, expert_bits=2) > one
    assert staged(source, io_mode="direct") - one >= 17 * 2 * 4096
    assert staged(source, prefetch="stale_gate", prefetch_depth=2) > staged(source, prefetch="stale_gate") > one


@pytest.mark.skipif(backend() != "cpu", reason="floats are widened on the CPU")
def test_buffers_of_other_sizes_are_kept_beside_those_in_use(source: Checkpoint) -> None:
    """Layers with different widths have buffers of different sizes."""
    knobs = Knobs.from_mapping({"cache_gb": weights_of(source, Knobs()).all_experts_gb / 2})
    banks = plan_banks(source, knobs)
    alone = staging_bytes(source, knobs, banks, 1)
    first, *others = banks
    tensors = tuple(t for t in first.form.tensors if t.name != "up_proj.scales")
    smaller = dataclasses.replace(first, form=dataclasses.replace(first.form, tensors=tensors))
    assert staging_bytes(source, knobs, [smaller, *others], 1) == alone * core.MOST_SPARE // source.top_k
