"""Facts of a study: the model's folder wherever the search ran, and the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.system.shipped import KIMI_MINI
from harness.best.facts import Facts, facts_of


def study(place: Path, path: str, **more: Any) -> Path:
    folder = place / "results" / "demo"
    folder.mkdir(parents=True)
    config = {
        "model": {"path": path},
        "engine": {"module": "engine", "command": None},
        "protocol": {},
        "confirm": {"share": 0.5},
    }
    (folder / "manifest.json").write_text(json.dumps({"config": config, "command": "search", **more}))
    return folder


def test_a_relative_model_is_found_beside_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert facts_of(study(tmp_path, "models/mine")).model == "~/models/mine"
    assert facts_of(study(tmp_path / "b", "models/gone")).model == "models/gone"
    assert (
        facts_of(study(tmp_path / "c", "experiments/kimi_mini/checkpoint")).model
        == "${root:}/experiments/kimi_mini/checkpoint"
    )


def test_the_folder_of_the_checkpoint_is_that_of_the_search(tmp_path: Path) -> None:
    assert facts_of(study(tmp_path, str(KIMI_MINI))).model == "${root:}/experiments/kimi_mini/checkpoint"
    assert facts_of(study(tmp_path / "b", "mine", checkpoint="/Volumes/ssd/mine")).model == "/Volumes/ssd/mine"


def test_without_a_manifest_nothing_is_known(tmp_path: Path) -> None:
    assert facts_of(tmp_path) == Facts()
    (tmp_path / "manifest.json").write_text("{")
    assert facts_of(tmp_path) == Facts()


def test_an_engine_of_another_maker() -> None:
    ours = {"module": "engine", "command": None}
    assert Facts(engine=ours).foreign() == {} == Facts().foreign({"engine": "engine"})
    assert Facts(engine={**ours, "command": "./m"}).foreign() == {"command": "./m"} == Facts().foreign({"engine": "./m"})
    assert Facts(engine={**ours, "module": "a:B"}).foreign() == {"module": "a:B"} == Facts().foreign({"engine": "a:B"})
