"""A study is composed once, and Hydra's own options still work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from harness.schema import register
from harness.study.hydra.composition import run_task


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts the compositions."""
    register()
    made: list[str] = []
    load = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, config_name: str, *args: object, **options: object) -> DictConfig:
        made.append(config_name)
        return load(self, config_name, *args, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    return made


def names(*argv: str) -> list[str]:
    """The names of the studies that a command line runs."""
    found: list[str] = []
    sys.argv[1:] = argv
    run_task(lambda config: found.append(config.study.name), argv)
    return found


@pytest.fixture(autouse=True)
def _command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["search"])


def test_a_study_is_composed_once(composed: list[str]) -> None:
    assert names("study.name=mine") == ["mine"]
    assert composed == ["config"]


@pytest.mark.parametrize("way", ["-m", "hydra.mode=MULTIRUN", "a file"])
def test_several_studies_in_a_row(way: str, tmp_path: Path, composed: list[str]) -> None:
    sweep = f"hydra.sweep.dir={tmp_path}"
    if way == "a file":
        (tmp_path / "study").mkdir()
        (tmp_path / "study" / "both.yaml").write_text("# @package _global_\nhydra: {mode: MULTIRUN}\nstudy: {name: mine}\n")
        assert names(f"--config-dir={tmp_path}", "study=both", sweep) == ["mine"]
    else:
        assert names(way, "study.name=a,b", sweep) == ["a", "b"]


def test_the_composed_study_is_printed_and_not_run(composed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert names("--cfg", "job", "study.name=mine") == []
    assert "name: mine" in capsys.readouterr().out
