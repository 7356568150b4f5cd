"""Context: what the next prompt reuses, with caches that can be trimmed and with those that cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine import Engine, load
from engine.generation.context import Context

FIRST = list(range(40))


def fill(context: Context, ids: list[int], copy_at: int | None = None) -> mx.array:
    """Prefill and compute the last token; return its logits."""
    context.reuse(ids)
    assert context.prefill(ids[:-1], copy_at=copy_at, stopped=lambda: False)
    return context.logits(ids[-1], decoding=False)


def fresh(engine: Engine, ids: list[int]) -> np.ndarray:
    return np.array(fill(Context(engine.forward), ids))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "qwen3_next", "lfm2_moe", "nemotron_h"])
def test_the_next_prompt_reuses_its_prefix(checkpoint: Callable[..., Path], family: str) -> None:
    """A prompt that goes on from everything, one that goes on from the copied place, and one that shares a little."""
    with load(checkpoint(family)) as engine:
        context = Context(engine.forward)
        fill(context, FIRST, copy_at=30)
        for token in (50, 51, 52):  # an answer
            context.logits(token, decoding=True)
        whole = [*FIRST, 50, 51, 52, 60, 61]
        assert context.reuse(whole) == 43
        np.testing.assert_allclose(fill(context, whole), fresh(engine, whole), atol=1e-4)
        other = [*FIRST[:35], *range(70, 80)]
        trims = family == "qwen3_moe"
        assert context.reuse(other) == (35 if trims else 30)
        np.testing.assert_allclose(fill(context, other), fresh(engine, other), atol=1e-4)
        assert context.tokens == other
        again = [*FIRST[:35], *range(90, 93)]  # the copy is still there
        assert context.reuse(again) == (35 if trims else 30)
        np.testing.assert_allclose(fill(context, again), fresh(engine, again), atol=1e-4)
        short = [*FIRST[:10], 99]
        assert context.reuse(short) == (10 if trims else 0)
        np.testing.assert_allclose(fill(context, short), fresh(engine, short), atol=1e-4)


def test_a_window_that_is_not_full_is_trimmed(checkpoint: Callable[..., Path]) -> None:
    """After it, the copy of tokens that are no longer there is not used."""
    with load(checkpoint("gpt_oss")) as engine:
        context = Context(engine.forward)
        fill(context, FIRST[:14], copy_at=12)
        assert context.reuse([*FIRST[:5], 99]) == 5
        longer = [*FIRST[:5], *range(100, 140)]
        np.testing.assert_allclose(fill(context, longer), fresh(engine, longer), atol=1e-4)
        other = [*FIRST[:14], 98]
        assert context.reuse(other) == 0
        np.testing.assert_allclose(fill(context, other), fresh(engine, other), atol=1e-4)


def test_the_same_prompt_computes_its_last_token(checkpoint: Callable[..., Path]) -> None:
    with load(checkpoint("qwen3_moe")) as engine:
        context = Context(engine.forward)
        expected = fill(context, FIRST)
        assert context.reuse(FIRST) == 39
        np.testing.assert_allclose(fill(context, FIRST), expected, atol=1e-4)


def test_an_error_forgets_what_only_some_layers_hold(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(checkpoint("qwen3_moe")) as engine:
        context = Context(engine.forward)
        fill(context, FIRST)

        def broken(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(engine.forward, "decode", broken)
        with pytest.raises(KeyboardInterrupt):
            context.logits(3, decoding=True)
        assert context.tokens == [] and context.reuse(FIRST) == 0
