"""Sleep inhibition with fake programs in place of caffeinate and systemd-inhibit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import ROOT, wait_for

from harness.machine import awake
from harness.machine.awake import keep_awake

HOLD = """
import sys
from harness.machine.awake import keep_awake
with keep_awake(print, "linux"):
    print("ready", flush=True)
    sys.stdin.read()
"""


def holder(tmp_path: Path, **env: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), **env},
    )
    assert child.stdout
    lines = iter(child.stdout.readline, "")
    assert "ready\n" in lines
    return child


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_systemd_inhibit_ends_with_the_search(tmp_path: Path) -> None:
    """A search that is killed leaves no inhibitor."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    fake(bin_, "systemd-inhibit", f'echo $$ "$@" > {tmp_path}/called; while [ "$1" != sh ]; do shift; done; exec "$@"')
    child = holder(tmp_path, PATH=f"{bin_}:{os.environ['PATH']}")
    try:
        pid, *options = (tmp_path / "called").read_text().split()
        assert "--what=sleep:idle" in options
        inhibitor = psutil.Process(int(pid))
    finally:
        child.kill()
        child.communicate()
    inhibitor.wait(20)


def test_caffeinate_watches_this_process_and_ends_with_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "caffeinate", f'echo "$@" > {tmp_path}/called; echo $$ > {tmp_path}/pid; exec sleep 60')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    notes: list[str] = []
    with keep_awake(notes.append, "darwin"):
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        assert (tmp_path / "called").read_text() == f"-ims -w {os.getpid()}\n"
        pid = int((tmp_path / "pid").read_text())
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    assert notes == []


def test_a_missing_inhibitor_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "systemd-inhibit", "echo 'Failed to connect to bus' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    notes: list[str] = []
    with keep_awake(notes.append, "linux"):
        pass
    (tmp_path / "systemd-inhibit").unlink()
    with keep_awake(notes.append, "linux"), keep_awake(notes.append, "darwin"):
        pass
    assert [note.partition(": ")[2] for note in notes] == [
        "systemd-inhibit: Failed to connect to bus",
        "systemd-inhibit cannot be run (No such file or directory)",
        "caffeinate cannot be run (No such file or directory)",
    ]


def test_an_inhibitor_that_hangs_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "systemd-inhibit", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(awake, "INHIBIT_S", 0.1)
    notes: list[str] = []
    with keep_awake(notes.append, "linux"):
        pass
    assert notes == ["this machine may go to sleep: systemd-inhibit: no answer within 0.1 s"]
