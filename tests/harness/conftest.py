"""A results folder, a fake checkpoint and a judge; `cli` runs the command in this process, `spawn` in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder to stand in, from which the fake engine can be imported, here and in children."""
    prepare(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(folder: Path) -> Path:
    """Put a fake checkpoint and a judge into `folder`."""
    (folder / "checkpoint").mkdir()
    (folder / "judge.txt").write_text("The miller opens the headrace and the wheel begins to turn. " * 20)
    return folder


def arguments(place: Path, *overrides: str) -> list[str]:
    """The command line of a study on the fake engine; what the test gives comes last and holds."""
    given = {o.split("=")[0] for o in overrides}
    defaults = {
        "engine.module": "fake_engine",
        "model.path": str(place / "checkpoint"),
        "quality.text": str(place / "judge.txt"),
        "results_dir": str(place / "results"),
        "confirm.share": "0",  # these have tests of their own
        "sentinel.every": "0",
        "protocol.cool_down_s": "0",
        "guards.wait_s": "0",  # the suite shares its machine, and tests run side by side
        "guards.max_load": "99",
        "guards.alone": "false",
        "guards.keep_awake": "false",
    }
    return [*overrides, *(f"{k}={v}" for k, v in defaults.items() if k not in given)]


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `python -m harness.search OVERRIDES` in this process: (exit status, stdout, stderr)."""
    from harness import search

    def run(*overrides: str, plots: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["search", *arguments(place, *overrides)])
        monkeypatch.setattr(search, "_status", 0)
        for plot in () if plots else ("plot_front", "plot_night"):  # they take longer than the study; test_plot draws them
            monkeypatch.setattr(f"harness.report.{plot}", lambda df, path, **rules: path)
        capsys.readouterr()
        status = search.main()
        return status, *capsys.readouterr()

    return run


def spawn(place: Path, *overrides: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """The same command in a process of its own, which a test may kill."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.search", *arguments(place, *overrides)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT)))},
    )
