"""Tests of forced routing: the engine uses the trace's experts, and predicts the share it is limited to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from traces import routing, write_trace

from engine import HeadraceError, Knobs, load
from engine.bench.decoding.forced_routing import WARM_UP, ForcedRouting
from engine.routing.read import read_trace

HALF = {"cache_gb": 16 * 4 * 0.5 * 14336 / 1e9}  # half of the 64 experts of `random_model`, 14336 bytes each


@pytest.mark.parametrize("knobs", [Knobs(**HALF), Knobs(**HALF, sync_window=0)])
def test_experts_are_the_traces(random_model: Path, tmp_path: Path, knobs: Knobs) -> None:
    """The engine's own counters show each expert as often as the trace has it."""
    experts = routing(60, 4, 4, 16)
    trace = read_trace(write_trace(tmp_path / "t.parquet", experts))
    with load(random_model, knobs) as engine:
        forced = ForcedRouting(engine, trace, [0.6, 0.8] if engine.windows else None)
        _, stats = forced.decode(30)
        assert stats.tokens == 30 and 0.3 < (stats.hit_rate or 0) < 0.9
        counts = np.stack([np.bincount(experts[: WARM_UP + 30, n].reshape(-1), minlength=16) for n in range(4)])
        assert np.array_equal(engine.uses, counts)
        if engine.windows:
            assert 0.5 < (stats.window_prediction_recall or 0) < 0.9 and stats.passes > stats.windows


def test_a_trace_with_fewer_ranks_is_completed(random_model: Path, tmp_path: Path) -> None:
    experts = routing(40, 4, 3, 16)
    with load(random_model) as engine:
        forced = ForcedRouting(engine, read_trace(write_trace(tmp_path / "t.parquet", experts)), None)
    assert np.array_equal(forced.ids[..., :3], experts)
    assert (np.diff(np.sort(forced.ids.astype(int), axis=-1), axis=-1) > 0).all(), "no expert twice"


@pytest.mark.parametrize("shape", [(40, 4, 4, 32), (40, 4, 1, 16)], ids=["experts", "ranks"])
def test_a_trace_of_another_model_does_not_fit(random_model: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    trace = read_trace(write_trace(tmp_path / "t.parquet", routing(*shape)))
    with load(random_model) as engine, pytest.raises(HeadraceError, match=r"does not fit small \(4 layers of 16 experts"):
        ForcedRouting(engine, trace, None)


def test_a_prompt_longer_than_the_trace_repeats_it(random_model: Path, tmp_path: Path) -> None:
    experts = routing(10, 4, 4, 16)
    with load(random_model, Knobs(**HALF)) as engine:
        forced = ForcedRouting(engine, read_trace(write_trace(tmp_path / "t.parquet", experts)), None)
        cache = make_prompt_cache(engine.model)
        for first in (0, 8):
            forced.at(first)
            engine.forward.logits([1] * 8, cache)
        used = experts[np.arange(16) % 10]
        assert np.array_equal(engine.uses, np.stack([np.bincount(used[:, n].reshape(-1), minlength=16) for n in range(4)]))


def test_another_number_of_layers_is_mapped_by_depth(random_model: Path, tmp_path: Path) -> None:
    experts = routing(40, 2, 4, 12)
    with load(random_model) as engine:
        forced = ForcedRouting(engine, read_trace(write_trace(tmp_path / "t.parquet", experts)), None)
    assert np.array_equal(forced.ids, experts[:, [0, 0, 1, 1]])
    assert forced.mapped.startswith("2 recorded layers for 4, only 1")


def test_nothing_is_missing_while_one_token_is_held(random_model: Path, tmp_path: Path) -> None:
    with load(random_model, Knobs(**HALF)) as engine:
        forced = ForcedRouting(engine, read_trace(write_trace(tmp_path / "t.parquet", routing(60, 4, 4, 16))), None)
        assert forced.decode(10, held=True)[1].misses == 0
        assert forced.decode(10)[1].misses > 0
