"""Forward: chunks give the same logits, each expert is read once per chunk, and unused logits cost no reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import CONFIGS

from engine import Knobs, footprint, load


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
            assert engine.stats.hits + misses == sum(
                len(np.unique(layer)) for part in chosen_in(path, tokens, chunk) for layer in part
            )


def chosen_in(path: Path, tokens: np.ndarray, chunk: int) -> list[list[np.ndarray]]:
    """The choices of each layer in each chunk."""
    parts: list[list[np.ndarray]] = []
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb, prefill_chunk=chunk)) as engine:
        for stream in engine.layers:
            count = stream._count

            def seen(ids: np.ndarray, needed: np.ndarray, count=count, number=stream.number) -> None:  # type: ignore[no-untyped-def]
                if number == 0:
                    parts.append([])
                parts[-1].append(ids)
                count(ids, needed)

            stream._count = seen  # type: ignore[method-assign]
        engine.logits(tokens)
    return parts


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
