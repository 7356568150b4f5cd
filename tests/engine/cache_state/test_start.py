"""Start: each state before the clock, after a prompt that was computed or restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from engine import Engine, HeadraceError, Judge, Knobs, Protocol, footprint, load
from engine.cache_state.start import Start
from engine.measure.judge import Text
from engine.prompt_cache.kept import Keeping

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


TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT, TEXT[:12]), Text("b", "prose", TEXT[::-1], TEXT[30:45])))


@pytest.mark.parametrize("state", ["prefilled", "steady", "cold"])
def test_a_measurement_misses_the_same_with_restored_prompts(
    checkpoint: Callable[..., Path], tmp_path: Path, state: str
) -> None:
    """Prompts that are computed, kept and restored; the timed tokens begin in both texts."""
    path = checkpoint("deepseek_v3", None, True)
    knobs, keeping = Knobs(cache_gb=2 * footprint(path).one_token_gb, pinned_share=0.2), Keeping(folder=tmp_path)
    found = []
    for prefill in ("real", "restored", "restored"):
        with load(path, knobs) as engine:
            protocol = Protocol(warm_up_tokens=3, timed_tokens=20, score=False, prefill=prefill, state=state)
            found.append(engine.measure(JUDGE, protocol, keeping=keeping))
            assert engine.filled.bytes_read == found[-1].fill_bytes
    assert found[2].prefill == "restored" and (found[2].fill_bytes > 0) == (state != "cold")
    for name in ("misses", "hits", "bytes_read", "reads", "layers_missed_per_token", "timed_nll", "decode_tokens"):
        assert len({getattr(one, name) for one in found}) == 1, name
    assert found[0].misses > 0


def test_what_a_state_cannot_do_is_one_line(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = checkpoint("deepseek_v3", None, True)
    with load(path, Knobs(cache_gb=2 * footprint(path).one_token_gb, cold_drop=0.5)) as engine:
        with pytest.raises(
            HeadraceError, match="state=steady is not possible with cold_drop, whose choices depend on what is"
        ):
            engine.measure(JUDGE, Protocol(timed_tokens=2, score=False, state="steady"))
        expected = "state=cold leaves no trace that can be replayed; record it with prefilled"
        with pytest.raises(HeadraceError, match=expected), engine.trace(tmp_path / "t.parquet"):
            engine.measure(JUDGE, Protocol(timed_tokens=2, score=False, state="cold"))
        assert engine.measure(JUDGE, Protocol(timed_tokens=2, score=False, state="cold")).misses > 0
