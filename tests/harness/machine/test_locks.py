"""Locks of a search: a second holder is refused by name, and a killed holder leaves no lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from harness import ResultsError
from harness.machine import locks
from harness.machine.locks import machine_lock, study_lock

HOLD = """
import sys
from pathlib import Path
from harness.machine.locks import machine_lock, study_lock
with machine_lock(Path("results/demo")), study_lock(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_both_locks_end_with_their_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        assert child.stdout and child.stdout.readline() == "ready\n"
        with pytest.raises(ResultsError, match=rf"\(process {child.pid}, results/demo\).*guards.alone=false"):
            machine_lock(tmp_path).__enter__()
        with pytest.raises(ResultsError, match=rf"in use by another search \(process {child.pid}\); wait for it"):
            study_lock(tmp_path).__enter__()
    finally:
        child.kill()
        child.communicate()
    with machine_lock(tmp_path), study_lock(tmp_path):
        pass


def test_the_lock_without_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    with machine_lock(tmp_path):
        assert list(tmp_path.glob("headrace-*.lock"))
        with pytest.raises(ResultsError, match=f"process {os.getpid()}"), machine_lock(tmp_path):
            pass
