"""Tests of the routing that settings are replayed on: traces, rehearsals and made-up choices, of some layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from rehearsals import write

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.routing.fitted import FITTED
from engine.routing.traces.recording import Recording
from harness.forecast.study import routing as module
from harness.forecast.study.routing import fitting, last, narrowed, profile_of, routing

KIMI_MINI = Path(__file__).resolve().parents[4] / "experiments" / "kimi_mini" / "checkpoint"


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return Checkpoint.open(KIMI_MINI)


def test_the_trace_of_the_model_is_best(model: Checkpoint) -> None:
    found = routing(model)
    assert found.about == "the model's trace routing_trace.parquet" and found.share == 1
    assert [one.experts.shape for one in found.recordings] == [(module.MOST_TOKENS, 6, 4)]


def test_a_deep_model_is_replayed_on_some_layers(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY", 2)
    monkeypatch.setattr(module, "FEW", 2)
    found = routing(model)
    assert found.share == pytest.approx(1 / 3) and found.model.layers == (model.layers[0], model.layers[5])
    whole = fitting(module.trace_of(model, 64), model, [*range(6)])  # type: ignore[arg-type]
    assert whole is not None and np.array_equal(found.recordings[0].experts, whole.experts[:, [0, 5]])


def test_other_models_have_possible_routings(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "trace_of", lambda *_: None)
    found = routing(model)
    assert len(found.recordings) == len(FITTED) and found.about.startswith("made up with the localities of")
    with pytest.raises(HeadraceError, match="a token uses all 64 experts"):
        routing(dataclasses.replace(model, config={**model.config, "num_experts_per_tok": 64}))


def test_a_trace_that_does_not_fit_is_left(model: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_text("none")
    assert fitting(tmp_path / "damaged.parquet", model, [0]) is None
    trace = module.trace_of(model, 64)
    assert trace is not None and fitting(trace, dataclasses.replace(model, layers=model.layers[:3]), [0]) is None


def test_a_rehearsal_states_its_locality(tmp_path: Path) -> None:
    found = routing(Checkpoint.open(write(tmp_path / "r")))
    assert len(found.recordings) == 1 and "locality" in found.about


def test_the_last_passes_of_a_recording() -> None:
    made = Recording.made_up(np.arange(60).reshape(10, 2, 3), 4)
    assert last(made, 100).experts.shape == made.experts.shape
    cut = last(made, 3)
    assert np.array_equal(cut.experts, made.experts[7:]) and cut.passes[:, 0].tolist() == [1, 2, 3]
    assert len(last(made, 8).experts) == 6  # the prompt is one pass


def test_fewer_experts_of_each_choice() -> None:
    made = Recording.made_up(np.arange(60).reshape(10, 2, 3))
    assert narrowed(made, 3) is made and np.array_equal(narrowed(made, 2).experts, made.experts[..., :2])
    assert profile_of(made, 2, 60).uses.sum() == 60
