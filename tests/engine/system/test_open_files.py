"""Open files: the limit is raised as far as needed, and a lower one than needed is refused in a line."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.system import open_files
from engine.system.open_files import SPARE, ensure_open_files, limits

ROOT = Path(__file__).resolve().parents[3]
IMPORT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
import engine, importlib.util
importlib.util.find_spec("mlx_lm")
before = resource.getrlimit(resource.RLIMIT_NOFILE)
import mlx_lm.utils
assert resource.getrlimit(resource.RLIMIT_NOFILE) == before == ({soft}, {hard})
assert mlx_lm.utils.load_model and resource.setrlimit.__module__ == "resource"
"""


class Limits:
    """The system's limits, and how often they were set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, *, refuse: bool = False) -> None:
        self.now = (soft, hard)
        self.refuse = refuse
        monkeypatch.setattr(resource, "getrlimit", lambda which: self.now)
        monkeypatch.setattr(resource, "setrlimit", self.set)
        monkeypatch.setattr(open_files, "open_files", lambda: 10)

    def set(self, which: int, values: tuple[int, int]) -> None:
        if self.refuse:
            raise ValueError("not allowed to raise maximum limit")
        self.now = values


def test_the_limit_of_macos_is_raised_to_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    system = Limits(monkeypatch, 256, resource.RLIM_INFINITY)
    monkeypatch.setattr(sys, "platform", "darwin")
    ensure_open_files(120, "a model")
    assert system.now == (256, resource.RLIM_INFINITY), "enough"
    ensure_open_files(300, "a model")
    assert system.now == (10 + 300 + SPARE, resource.RLIM_INFINITY)
    assert limits() == (10 + 300 + SPARE, 10240), "OPEN_MAX"
    with pytest.raises(HeadraceError, match=r"^a model needs 20042 open files, and this process may have 342; raise"):
        ensure_open_files(20_000, "a model")


@pytest.mark.parametrize("refuse", [False, True])
def test_a_limit_that_cannot_be_raised(monkeypatch: pytest.MonkeyPatch, refuse: bool) -> None:
    system = Limits(monkeypatch, 64, 10_000 if refuse else 64, refuse=refuse)
    ensure_open_files(64 - 10 - SPARE, "a model")
    with pytest.raises(HeadraceError, match=r"may have 64; raise the limit with ulimit -n"):
        ensure_open_files(64 - 10 - SPARE + 1, "a model")
    assert system.now[0] == 64


def test_without_a_list_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_files.open_files() and open_files.open_files() > 2
    system = Limits(monkeypatch, 100, 1000)
    monkeypatch.setattr(open_files, "open_files", lambda: None)
    ensure_open_files(200, "a model")
    assert system.now == (200 + SPARE, 1000)


@pytest.mark.parametrize(("soft", "hard"), [(1024, 1024), (256, 2000)])
def test_importing_mlx_lm_keeps_the_limits(soft: int, hard: int) -> None:
    """As a user without the right to raise a hard limit: mlx-lm asks for 4096 when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(soft=soft, hard=hard)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
