"""System calls: each works here or fails with its reason, and wrong behaviour of the system is noticed."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from harness.doctor import calls
from harness.doctor.check import FAILS, WORKS, Place, Result


def results(folder: Path) -> dict[str, Result]:
    return {check.name: check.result(Place(folder)) for check in calls.checks()}


def test_on_this_machine(tmp_path: Path) -> None:
    found = results(tmp_path)
    may_fail = {"direct reads", "keeping the machine awake", "emptying the page cache"}  # on tmpfs, without systemd
    assert {name: r.reason for name, r in found.items() if r.state == FAILS and name not in may_fail} == {}


def test_wrong_behaviour_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(calls, "cached_share", lambda files: 0.5)
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)  # a file system that grants each lock
    monkeypatch.setattr(calls, "end_group", lambda pid: False)
    found = results(tmp_path)
    assert found["pages in the cache (mincore)"].reason.startswith("50% of a file that was just read")
    assert found["emptying the page cache"].reason.endswith("50% of the file stay cached")
    assert found["file locks (flock)"].reason == "two holders have the same lock at once"
    assert found["ending a process group"].state == FAILS
    monkeypatch.setattr(fcntl, "flock", without_locks)
    assert results(tmp_path)["file locks (flock)"].reason == "the file system has none"


def test_why_the_machine_may_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    @contextlib.contextmanager
    def noted(note: Any) -> Any:
        note("this machine may go to sleep: systemd-inhibit: no bus: none")
        yield

    monkeypatch.setattr(calls, "keep_awake", noted)
    assert results(tmp_path)["keeping the machine awake"].reason == "systemd-inhibit: no bus: none"
    assert results(tmp_path)["reads into memory (preadv)"].state == WORKS
