"""Shipped studies: each of their first trials can run on the device that the study names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from engine import Checkpoint, Knobs
from engine.model import backend
from engine.plan import banks
from engine.plan import footprint as plan
from engine.plan.memory import activations, staging
from engine.system.shipped import EXPERIMENTS
from harness.schema import register
from harness.study import study as studies
from harness.study.engines import PythonEngine, no_ceiling
from harness.study.study import Study


def shipped(*overrides: str) -> Study:
    register()
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        return studies.study_from_config(compose("config", list(overrides)))


def assert_anchors_fit(study: Study) -> None:
    """Every anchor is predicted within the limit, without the tolerance, and its cache holds one token's experts."""
    assert len(study.anchors) >= 4
    for params in study.anchors:
        knobs = Knobs.from_mapping(study.space.values(params))
        need = study.engine.footprint(study.checkpoint, knobs)
        assert need.predicted_peak_gb <= study.memory_bound_gb, (knobs, need)
        assert knobs.cache_gb is not None and knobs.cache_gb >= need.one_token_gb, (knobs, need)


def test_the_anchors_of_the_demo_fit() -> None:
    assert_anchors_fit(shipped("study=demo"))


@pytest.mark.slow
def test_the_anchors_of_kimi_m2max_fit(sparse_kimi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the full shape of the checkpoint, with floats of 16 bits and MLX's buffer cache as on Metal.

    The checkpoint is opened once. The memory of a pass is what `pass_memory` returns for 512 tokens; a trace takes seconds.
    """
    for module in (backend, activations, banks, staging, plan):
        monkeypatch.setattr(module, "compute_dtype", lambda: None)
    monkeypatch.setattr("engine.model.buffer_cache.backend", lambda: "metal")
    memory = activations.PassMemory(kv=35_979_264, activations=503_316_480)
    monkeypatch.setattr(activations, "pass_memory", lambda *args, **more: memory)
    checkpoint = Checkpoint.open(sparse_kimi)

    def footprint(path: Any, knobs: Knobs, context: int = plan.CONTEXT) -> plan.Footprint:
        return dataclasses.replace(plan.footprint(checkpoint, knobs, context), fingerprint="2-" + "0" * 16)

    engine = PythonEngine(lambda *args: None, footprint, no_ceiling)
    monkeypatch.setattr(studies, "engine_from_config", lambda *args, **more: engine)
    monkeypatch.setattr(studies, "open_tokenizer", lambda *args, **more: None)
    study = shipped("study=kimi_m2max", f"model.path={checkpoint.path}", f"results_dir={tmp_path}")
    assert study.limit_gb == pytest.approx(77.31) and 23 < study.bounds["resident"] < 26
    assert_anchors_fit(study)
