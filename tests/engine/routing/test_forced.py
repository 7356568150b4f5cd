"""Tests of a rehearsal's routing: every pass computes with the synthetic experts, whoever starts it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from rehearsals import RECALL, write
from stores import one_line

from engine import HeadraceError, Judge, Knobs, Protocol, ceiling_tok_s, footprint, load
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.measure.judge import Text
from engine.routing.forced import rehearsed
from engine.routing.profile import routing_profile

JUDGE = Judge((Text("wheel", "plain", "The wheel turns when there is water. " * 3, "The mill stops in winter, then " * 3),))


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rehearsal") / "r")


def routing(path: Path) -> np.ndarray:
    mark = read_rehearsal(path)
    assert mark is not None
    return rehearsed(mark, Checkpoint.open(path))[0]


def counts(ids: np.ndarray, experts: int = 16) -> np.ndarray:
    return np.stack([np.bincount(ids[:, n].reshape(-1), minlength=experts) for n in range(ids.shape[1])])


def half(path: Path, **more: object) -> Knobs:
    return Knobs(cache_gb=footprint(path).all_experts_gb / 2, **more)  # type: ignore[arg-type]


def test_prefill_and_decode_take_the_next_tokens(rehearsal: Path) -> None:
    with load(rehearsal, half(rehearsal)) as engine:
        cache = make_prompt_cache(engine.model)
        engine.forward.logits([0] * 5, cache)
        engine.forward.decode(0, cache)
        engine.model(mx.array([[0]]), cache=cache)
        assert np.array_equal(engine.uses, counts(routing(rehearsal)[:7]))


def test_a_measurement_says_that_it_is_a_rehearsal(rehearsal: Path) -> None:
    knobs, protocol = half(rehearsal, pinned_share=0.2), Protocol(warm_up_tokens=2, timed_tokens=8)
    with load(rehearsal, knobs) as engine:
        first = engine.measure(JUDGE, protocol)
        assert engine.checkpoint.name == "kimi_k25 (rehearsal: random weights)"
    with load(rehearsal, knobs) as engine:
        again = engine.measure(JUDGE, protocol)
    assert first.mode is not None and first.mode.endswith(", rehearsal: random weights")
    assert (first.misses, first.bytes_read) == (again.misses, again.bytes_read) and 0.2 < (first.hit_rate or 0) < 1


def test_windows_predict_with_the_rehearsals_recall(rehearsal: Path) -> None:
    with load(rehearsal, half(rehearsal, sync_window=0)) as engine:
        engine.measure(JUDGE, Protocol(warm_up_tokens=2))
        stats = engine.decoded
    assert stats.passes > stats.windows and RECALL[0] - 0.15 < (stats.window_recall_by_pass[0] or 0) < 0.97


def test_its_profile_is_that_of_later_tokens(rehearsal: Path) -> None:
    uses = routing_profile(Checkpoint.open(rehearsal)).uses
    assert uses.shape == (5, 16) and (uses.sum(axis=1) == 256 * 4).all()
    assert np.corrcoef(uses[0], counts(routing(rehearsal))[0])[0, 1] > 0.7


def test_what_cannot_be_known_is_refused(rehearsal: Path, tmp_path: Path) -> None:
    with pytest.raises(
        HeadraceError, match=r"prefetch=stale_gate predicts routers, but .* is forced; set prefetch=off"
    ) as e:
        load(rehearsal, half(rehearsal, prefetch="stale_gate"))
    one_line(e)
    with load(rehearsal) as engine:
        with (
            pytest.raises(HeadraceError, match="is forced, so no trace of it is recorded") as e,
            engine.trace(tmp_path / "t"),
        ):
            pass
        one_line(e)
    assert ceiling_tok_s(rehearsal, half(rehearsal, ssd_gbps=0.1), JUDGE) is None
