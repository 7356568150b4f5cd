"""Study: resolved values of a configuration, and settings that cannot run by arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from support import arguments

from engine.system.shipped import EXPERIMENTS
from harness.schema import register
from harness.study.study import Study, study_from_config


@pytest.fixture
def study_of(place: Path) -> Any:
    """The study of a command line on the fake engine."""

    def resolve(*overrides: str) -> Study:
        register()
        with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
            return study_from_config(compose("config", arguments(place, *overrides)))

    return resolve


def test_what_follows_from_the_configuration(study_of: Any, place: Path) -> None:
    study = study_of("constraints=['peak_memory_gb <= 0.05']", "device.memory_gb=1", "quality.most=1", "study.seed=4")
    assert (study.name, study.seed, study.model, study.folder) == ("demo", 4, place.name, place / "results" / "demo")
    assert study.limit_gb == pytest.approx(study.config["device"]["usable_share"])
    assert study.memory_bound_gb == 0.05 and study.scored and not study.wants_kl and study.json_prompts is None
    assert study.headline.startswith(f"demo: {place.name} on ") and "evaluation texts judge" in study.headline
    assert "state" not in study.identity()["protocol"] and study.protocol["state"] == "prefilled"
    assert study.identity()["seed"] == 4 and study.rules == {k: study.config["confirm"][k] for k in study.rules}


def test_what_cannot_run_has_a_reason(study_of: Any) -> None:
    study = study_of("device.memory_gb=1")
    values = study.space.values(study.anchors[0])
    assert study.forbidden(values)[0] is None
    assert "is below one token's experts" in str(study.forbidden({**values, "cache_gb": 1e-6})[0])
    small = study_of("constraints=['peak_memory_gb <= 0.001']")
    assert "above the limit of 0.001 GB" in str(small.forbidden(values)[0])


def test_a_space_or_texts_change_the_fingerprints(study_of: Any) -> None:
    one, same, other = study_of(), study_of(), study_of("search_space.cache_gb.low=0.006")
    assert one.space_fingerprint == same.space_fingerprint != other.space_fingerprint
