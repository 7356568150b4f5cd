"""Trial: what the runs of a study took beside their timed tokens, and the studies that a forecast may take it from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from stored import row

from engine.errors import HeadraceError
from harness.forecast.forecast import as_dict, forecast
from harness.forecast.locality import worlds_of
from harness.forecast.machine.figures import device_from, machine
from harness.forecast.target import target
from harness.forecast.text import report
from harness.forecast.trial import Besides, besides, found_here, of_study
from harness.machine.identity import host
from harness.results.writing import write_row

MODEL = target("deepseek_v4_flash")  # has sizes only, so that nothing is built
TYPE = MODEL.shape.config["model_type"]
RUN = {"session": "a", "between_s": 1.0, "cool_down_s": 2.0, "wall_s": 30.0, "timed_s": 8.0, "decode_tokens": 64,
       "architecture": TYPE, "model": "m"}  # fmt: skip


def study(folder: Path, *rows: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"identity": {}, "config": {}}))
    for one in rows:
        write_row(folder, one)
    return str(folder)


def test_the_means_of_complete_runs() -> None:
    rows = [
        row(1, **RUN), row(2, **{**RUN, "wall_s": 34.0, "decode_tokens": 32}), row(3, **{**RUN, "status": "crash"}),
        row(0, **{**RUN, "origin": "reference", "wall_s": 900.0}), row(4, wall_s=500.0, decode_tokens=64),
    ]  # fmt: skip
    assert besides("s", rows) == Besides("s", 2, 27.0, 48.0)
    assert str(besides("s", rows)) == "27 s beside 48 timed tokens, measured in 2 runs of s"
    assert besides("s", rows[2:]) is None


def test_a_study_of_this_model(tmp_path: Path) -> None:
    name = study(tmp_path / "flash", row(1, **RUN))
    assert of_study(name, MODEL) == Besides("flash", 1, 25.0, 64.0)
    with pytest.raises(HeadraceError, match=r"is of other_moe, not of deepseek_v4_flash; give a study of this model"):
        of_study(study(tmp_path / "other", row(1, **RUN, **{}) | {"architecture": "other_moe"}), MODEL)
    with pytest.raises(HeadraceError, match=r"has no complete run with its time by part; run it again"):
        of_study(study(tmp_path / "old", row(1, wall_s=5.0)), MODEL)
    with pytest.raises(HeadraceError, match=r"is neither a study's folder nor"):
        of_study("nowhere", MODEL)


def test_the_study_of_a_model_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert found_here("models/Flash", MODEL) is None
    place = tmp_path / "results" / "Flash"
    study(place, row(1, **RUN, machine="another"), row(2, **{**RUN, "architecture": "other"}, machine=host()))
    assert found_here("models/Flash", MODEL) is None
    study(place, row(3, **RUN, machine=host()))
    assert found_here("models/Flash", MODEL) == Besides("Flash", 1, 25.0, 64.0)


def test_the_forecast_uses_what_was_measured() -> None:
    at = machine(device_from({"device": "m2max_96gb"}), MODEL, Path())
    worlds = worlds_of(MODEL.experts, MODEL.top_k)
    measured = Besides("flash", 12, 25.0, 64.0)
    found = forecast(MODEL, at, worlds, [20.0], measured)
    assert found.trial_s == pytest.approx(25.0 + 64 / found.best.tok_s.middle)
    assert found.new_trial_s == found.trial_s and f"{found.trials} in 8 hours\n" in report(found)
    assert str(measured) in report(found) and as_dict(found)["trial_measured"] == dataclasses.asdict(measured)
    without = forecast(MODEL, at, worlds, [20.0])
    assert as_dict(without)["trial_measured"] is None and without.least_trials < without.trials
    assert 64 / without.best.tok_s.middle < without.trial_s < without.new_trial_s
    assert "with new lossy knobs: " in report(without)
    assert "timed tokens" not in report(without)
