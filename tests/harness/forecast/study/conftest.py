"""A derived study of a tiny model, and figures of its machine in place of a probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from engine.system.shipped import EXPERIMENTS
from harness.forecast.study import forecaster
from harness.forecast.study.fit import Figures
from harness.schema import register
from harness.study.study import Study, study_from_config

FIGURES = Figures(20.0, 0.25, 0.0, 0.0, 1.0, 0.001)


@pytest.fixture
def study(tmp_path: Path, checkpoint: Callable[..., Path]) -> Study:
    """`study=auto` of a tiny model; its folder is there, as when a session begins."""
    register()
    given = ["study=auto", f"model.path={checkpoint('qwen3_moe')}", f"results_dir={tmp_path}", "study.name=mine"]
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        made = study_from_config(compose("config", given))
    made.folder.mkdir(parents=True)
    return made


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Replaces the probe; the list has the read limit of each call."""
    calls: list[float | None] = []

    def instead(checkpoint: Path, folder: Path, ssd_gbps: float | None, *_: object) -> Figures:
        calls.append(ssd_gbps)
        return FIGURES

    monkeypatch.setattr(forecaster, "probe", instead)
    return calls
