"""Forward: chunks give the same logits, each expert is read once per chunk, and unused logits cost no reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from tiny import CONFIGS

from engine import Knobs, footprint, load
from engine.stats import BYTES, HITS, MISSES


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


def test_a_prefill_reads_each_expert_once_a_chunk(path: Path) -> None:
    tokens = np.random.default_rng(3).integers(0, 255, 120)
    with load(path) as resident:
        expected = resident.logits(tokens)
    for chunk in (16, 120):
        with load(path, Knobs(cache_gb=footprint(path).one_token_gb, prefill_chunk=chunk)) as engine:
            assert np.array_equal(engine.logits(tokens), expected)
            misses, chunks = engine.stats.misses, -(-120 // chunk)
            assert engine.stats.bytes_read == misses * 12288
            assert misses <= 48 * chunks


TWO_WIDTHS = {"cold_bits": 2, "hot_share": 0.5}


@pytest.mark.parametrize(
    ("knobs", "times"),
    [
        *(({}, 1.0), ({}, 1.7), ({}, 3.0), ({"pinned_share": 0.5}, 1.7), ({"pinned_share": 0.3}, 3.0)),
        *((TWO_WIDTHS, 1.0), (TWO_WIDTHS, 1.5), ({**TWO_WIDTHS, "pinned_share": 0.4}, 1.5), ({"sync_window": 0}, 1.0)),
    ],
)
def test_no_expert_is_read_twice_in_a_chunk(checkpoint: Callable[..., Path], knobs: dict[str, Any], times: float) -> None:
    """Also if a chunk needs more experts than there are slots: each layer reads what was not cached before, and no more."""
    folder = checkpoint("qwen3_moe", 4)
    cache_gb = times * footprint(folder, Knobs.from_mapping({**knobs, "cache_gb": 1.0})).one_token_gb
    tokens = np.random.default_rng(5).integers(0, 255, 60).tolist()
    with load(folder, Knobs.from_mapping({**knobs, "cache_gb": cache_gb})) as engine:
        assert engine.state is not None
        sizes = np.array([layer.expert_bytes for layer in engine.checkpoint.layers])
        cache = make_prompt_cache(engine.model)
        for begin in range(0, 60, 20):
            cached, uses = engine.state.slot_of >= 0, engine.uses.copy()
            before = engine.stats.layers.copy()
            engine.forward.logits(tokens[begin : begin + 20], cache)
            needed, counted = engine.uses > uses, engine.stats.layers - before
            missing = (needed & ~cached).sum(axis=1)
            assert needed.sum(axis=1).min() > engine.checkpoint.top_k, "more than the smallest cache holds"
            assert counted[:, MISSES].tolist() == missing.tolist()
            assert counted[:, HITS].tolist() == (needed & cached).sum(axis=1).tolist()
            assert counted[:, BYTES].tolist() == (missing * sizes).tolist()


def test_generating_skips_unused_logits(path: Path) -> None:
    prompt = "what the last layer makes of a prompt is only wanted for its last token"
    with load(path) as resident, load(path, Knobs(cache_gb=footprint(path).one_token_gb)) as engine:
        assert "".join(engine.generate(prompt, 12)) == "".join(resident.generate(prompt, 12))
        engine.stats.reset()
        assert next(engine.generate(prompt, 1)) is not None
        used = engine.uses
        before = used[-1].sum()
        next(engine.generate(prompt, 1))
        assert used[-1].sum() - before == 4  # top-k of one token


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_prompt_in_chunks_gives_the_same_logits(checkpoint: Callable[..., Path], family: str) -> None:
    """They also equal one large chunk, except with Mamba, whose scan sums chunk by chunk."""
    path = checkpoint(family, 4)
    tokens = np.random.default_rng(3).integers(0, 255, 40)
    with load(path, Knobs(prefill_chunk=16)) as resident:
        expected = resident.logits(tokens)
    with load(path) as whole:
        difference = np.max(np.abs(whole.logits(tokens) - expected))
        assert difference == 0 or (family == "nemotron_h" and difference < 1e-4)
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb, prefill_chunk=16)) as engine:
        assert np.array_equal(engine.logits(tokens), expected)
