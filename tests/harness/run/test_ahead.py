"""Ahead: which jobs a study needs, one at a time, within the memory, and none that outlives its search."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hydra import compose, initialize_config_dir
from support import wait_for

from engine.system.shipped import EXPERIMENTS
from harness.run import ahead
from harness.run.ahead import Ahead, Apart, jobs
from harness.schema import register
from harness.study.study import Study, study_from_config


@pytest.fixture
def study(tmp_path: Path, checkpoint: Callable[..., Path]) -> Study:
    register()
    given = ["study=auto", f"model.path={checkpoint('qwen3_moe')}", f"results_dir={tmp_path}", "study.name=mine"]
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        return study_from_config(compose("config", given))


def needs(study: Study, *names: str, **fixed: Any) -> list[Apart]:
    """The jobs of the study with a space of the knobs `names` and the fixed ones."""
    space: Any = SimpleNamespace(entries=[SimpleNamespace(name=name) for name in names], fixed=fixed)
    return list(jobs(dataclasses.replace(study, space=space)))


def test_the_jobs_follow_from_the_space(study: Study) -> None:
    assert needs(study, "cache_gb", "expert_bits", pinned_share=0.0, ssd_gbps=None) == []
    assert [job.command[1] for job in needs(study, "cache_gb", "cold_bits")] == ["profile"]
    assert [job.command[1] for job in needs(study, "cache_gb", ssd_gbps=0.1, pinned_share=0.3)] == ["profile", "routing"]
    assert needs(study, ssd_gbps=0.1) == []  # nothing is read without a cache
    (job,) = needs(study, "cache_gb", ssd_gbps=0.1)
    assert set(json.loads(job.given)) == {"checkpoint", "trust_code", "texts", "timed_tokens"}
    assert job.peak_gb > 0 and not job.file.exists()
    other = {**study.config, "engine": {"module": "mine", "command": None}}
    assert needs(dataclasses.replace(study, config=other), "cache_gb", "cold_bits") == []


def test_a_job_makes_the_file_that_its_first_use_would_make(study: Study) -> None:
    (job,) = needs(study, "cold_bits")
    space: Any = SimpleNamespace(entries=[SimpleNamespace(name="cold_bits")], fixed={})
    ahead_of = Ahead(dataclasses.replace(study, space=space))
    ahead_of.begin()
    ahead_of.settle(lambda: False)
    assert job.file.exists()
    ahead_of.begin()
    assert ahead_of._child is None


def test_one_job_at_a_time_within_the_memory(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four jobs the first has its file and the second is too large. The others run one after the other."""
    (tmp_path / "there").touch()
    sizes = {"there": 1.0, "large": 5.1, "one": 5.0, "two": 1.0}
    some = [Apart(("time",), name, tmp_path / name, gb) for name, gb in sizes.items()]
    started: list[str] = []

    def start(*command: str, given: str) -> psutil.Popen:
        started.append(given)
        return psutil.Popen(["sleep", "60"], start_new_session=True)

    monkeypatch.setattr(ahead, "jobs", lambda study: iter(some))
    monkeypatch.setattr(ahead, "start_apart", start)
    ahead_of = Ahead(study, lambda: 10.0)
    ahead_of.settle(lambda: False)
    ahead_of.begin()
    ahead_of.begin()
    assert started == ["one"]
    assert ahead_of._child is not None
    first = ahead_of._child.pid
    ahead_of.settle(lambda: True)  # the user stops
    assert not psutil.pid_exists(first)
    ahead_of.begin()
    assert started == ["one", "two"]
    second = ahead_of._child.pid
    psutil.Process(second).kill()
    ahead_of.settle(lambda: False)
    wait_for(lambda: not psutil.pid_exists(second))
    ahead_of.begin()
    ahead_of.close()
    assert started == ["one", "two"]


def test_a_job_that_cannot_be_started_is_left_to_its_first_use(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: str, given: str) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(ahead, "start_apart", fails)
    monkeypatch.setattr(ahead, "jobs", lambda study: iter(needs(study, "cold_bits")))
    ahead_of = Ahead(study)
    ahead_of.begin()
    ahead_of.settle(lambda: False)
    assert ahead_of._child is None
