"""`search_space=auto`: the study of a user's own model, with its space, notes and manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from support import Cli

from engine import CheckpointError
from engine.system.shipped import EXPERIMENTS
from harness import ConfigError
from harness.results.rows import read_trials
from harness.schema import register
from harness.study.auto import merged
from harness.study.study import Study, study_from_config

Make = Callable[..., Path]


def auto(place: Path, checkpoint: Path, *overrides: str) -> Study:
    register()
    given = ["study=auto", f"model.path={checkpoint}", f"results_dir={place / 'results'}", *overrides]
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        return study_from_config(compose("config", given))


@pytest.mark.slow
def test_the_whole_study_of_a_users_model(place: Path, cli: Cli, checkpoint: Make) -> None:
    path = shutil.copytree(checkpoint("qwen3_moe"), place / "My Model")
    few = ("protocol.timed_tokens=4", "protocol.warm_up_tokens=1", "quality.most=1")
    status, out, err = cli("study=auto", "engine.module=engine", f"model.path={path}", "budget.trials=1", *few)
    assert (status, err) == (0, "")
    assert "note: machine: " in out and "note: left out: sync_window: on the CPU" in out and "note: packing: a store" in out
    df = read_trials(place / "results" / "My-Model")
    assert df["status"].tolist() == ["ok"] * 2, df["status_reason"].tolist()
    assert df["device_profile"].isna().all() and df["ssd_gbps"].isna().all() and df["sync_window"].dropna().eq(1).all()
    manifest = json.loads((place / "results" / "My-Model" / "manifest.json").read_text())
    derived = manifest["derived"]
    assert derived["space"]["cache_gb"]["low"] == manifest["identity"]["space"]["search_space"]["cache_gb"]["low"]
    assert derived["left_out"]["expert_bits"].startswith("My Model is not packed, with experts of 16 bits: ")
    assert "--levels 4,8 STORE" in derived["notes"][-1] and "device_profile" not in manifest
    status, _, err = cli("study=auto", "engine.module=engine", f"model.path={path}", "budget.trials=1", *few)
    assert (status, err) == (0, "")  # the same command resumes


def test_entries_and_knobs_of_the_user_come_on_top(place: Path, checkpoint: Make) -> None:
    study = auto(
        place, checkpoint("qwen3_moe"), "search_space.cache_gb.high=0.0005", "search_space.top_k=[2,3]",
        "search_space.read_threads=2", "knobs.io_mode=direct", "study.name=mine",
    )  # fmt: skip
    entry = study.space.entry("cache_gb")
    assert (study.name, entry.high, entry.log) == ("mine", 0.0005, True) and entry.low < 0.0005
    assert study.space.fixed["read_threads"] == 2 and study.space.fixed["io_mode"] == "direct"
    assert study.space.entry("top_k").span == (2, 3)


def test_a_store_has_its_levels_and_no_advice(place: Path, store: Make) -> None:
    study = auto(place, store("qwen3_moe"))
    assert study.space.entry("expert_bits").values == (2, None) and study.space.entry("cold_bits").when
    assert study.automatic is not None and not any(n.startswith("packing") for n in study.automatic.notes)
    assert "a store of 2 and 4 bits" in study.automatic.notes[1]


def test_a_model_that_does_not_fit_names_need_and_limit(place: Path, checkpoint: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"does not fit into 0.09 GB, the limit of this machine: it needs 0\.\d+ GB or more"
    ):
        auto(place, checkpoint("qwen3_moe"), "device.memory_gb=0.1")


def test_a_profile_of_another_machine_says_so(place: Path, checkpoint: Make) -> None:
    study = auto(place, checkpoint("qwen3_moe"), "device=m3ultra_512gb")
    assert study.device_profile == "m3ultra_512gb" and study.limit_gb == pytest.approx(412.32)
    assert "limits of m3ultra_512gb" in study.headline
    with pytest.raises(ConfigError, match=r"device=m3ultra_512gb has no memory_gb|the limit of device=m1_8gb"):
        auto(place, checkpoint("qwen3_moe"), "device=m1_8gb", "device.gpu_memory_gb=0.05")


@pytest.mark.parametrize(
    ("path", "message"),
    [("empty", "has no config.json; give the folder of a whole model"), ("nowhere", "does not exist; name its folder with")],
)
def test_a_folder_that_is_no_model_is_one_line(path: str, message: str, place: Path) -> None:
    (place / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message) as e:
        auto(place, place / path)
    assert "\n" not in str(e.value)


def test_a_foreign_engine_with_three_sizes(place: Path, direct: Cli) -> None:
    status, out, err = direct("study=auto", "budget.trials=3", "protocol.timed_tokens=64")
    assert (status, err) == (0, "") and "not known whether a sync costs time" in out
    assert len(read_trials(place / "results" / place.name)) == 4


def test_without_a_model_the_error_names_the_key(place: Path, cli: Cli) -> None:
    status, _, err = cli("study=auto", "model.path=???")
    assert (status, err) == (2, "model.path is not set; give model.path=DIR, or ORG/NAME of a downloaded model\n")


def test_parts_of_an_entry_replace_parts() -> None:
    derived: dict[str, Any] = {"cache_gb": {"type": "float", "low": 1, "high": 2, "log": True}, "io_mode": "direct"}
    assert merged(derived, {"cache_gb": {"high": 1.5}})["cache_gb"] == {"type": "float", "low": 1, "high": 1.5, "log": True}
    assert merged(derived, {"cache_gb": [1, 3]})["cache_gb"] == [1, 3]
    assert merged(derived, {"io_mode": "buffered", "top_k": 2}) == {**derived, "io_mode": "buffered", "top_k": 2}
