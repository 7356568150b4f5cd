"""Start: each state before the clock, after a prompt that was computed or restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from engine import Engine, Knobs, footprint, load
from engine.cache_state.start import Start

RANDOM = np.random.default_rng(3)
PROMPTS = [RANDOM.permuted(np.tile(np.arange(16), (n, 3, 1)), axis=2)[..., :4].astype(np.int16) for n in (20, 30)]


def slots(engine: Engine) -> np.ndarray:
    assert engine.state is not None
    return engine.state.slot_of.copy()


@pytest.mark.parametrize("state", ["prefilled", "steady", "cold"])
def test_a_state_before_the_clock(checkpoint: Callable[..., Path], state: str) -> None:
    path = checkpoint("deepseek_v3", None, True)
    wanted = Knobs(cache_gb=2.5 * footprint(path).one_token_gb)
    calls = []
    with load(path, wanted) as one, load(path, wanted) as other:
        starts = [Start(engine, state, 16, lambda: calls.append(1) or PROMPTS) for engine in (one, other)]
        list(one.forward.prefill([5, 6, 7], make_prompt_cache(one.model)))
        computed = slots(one)
        starts[0].after_prompt(0)
        starts[1].after_prompt(0, PROMPTS[0])
        assert (other.filled.experts > 0) == (state != "cold") and len(calls) == 2 * (state == "steady")
        if state == "prefilled":  # the prompt that was computed is another one
            assert np.array_equal(slots(one), computed) and not np.array_equal(slots(one), slots(other))
            return
        assert np.array_equal(slots(one), slots(other)) and (slots(one) >= 0).any() == (state == "steady")
        before = slots(one)
        starts[0].after_prompt(1, PROMPTS[1])
        assert np.array_equal(slots(one), before) == (state == "cold") and len(calls) == 2 * (state == "steady")
        if state == "steady":
            last = PROMPTS[1][-1]
            assert (slots(one)[np.arange(3)[:, None], last] >= 0).all()
