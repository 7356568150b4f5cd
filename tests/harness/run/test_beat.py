"""Progress signal: touched at most every `BEAT_S`, and only while there is progress."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from support import wait_for

from harness.run import beat as module
from harness.run.beat import Beat, Signal


def test_touches_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "beat"
    beat = Beat(str(file))
    beat()
    os.utime(file, (0, 0))
    beat()
    assert file.stat().st_mtime_ns == 0  # within BEAT_S
    monkeypatch.setattr(module, "BEAT_S", 0.0)
    beat()
    assert file.stat().st_mtime_ns > 0


def test_only_progress_is_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watching thread is stepped: `work` returns a value, and its next call shows that the value was handled."""
    monkeypatch.setattr(module, "BEAT_S", 0.001)
    file = tmp_path / "beat"
    values, calls, release = iter([1, 2, 2, 2]), [0], threading.Event()

    def work() -> int:
        calls[0] += 1
        if calls[0] == 3:  # two values were handled
            release.wait()  # a limit would let a stalled test miss the third call
        if calls[0] > 4:
            threading.Event().wait()  # hold the daemon thread
        return next(values)

    Beat(str(file)).watch(work)
    wait_for(lambda: calls[0] == 3)
    assert file.exists()
    os.utime(file, (0, 0))
    release.set()
    wait_for(lambda: calls[0] == 5)
    assert file.stat().st_mtime_ns == 0  # the value did not change


def test_without_a_path_or_a_folder_nothing_happens(tmp_path: Path) -> None:
    Beat(None)()
    Beat(str(tmp_path / "no" / "beat")).now()


def test_a_signal_is_given_once(tmp_path: Path) -> None:
    file = tmp_path / "timed"
    signal = Signal(str(file))
    signal()
    assert file.exists()
    file.unlink()
    signal()
    assert not file.exists()
    Signal(None)()
    Signal(str(tmp_path / "none" / "timed"))()  # a disk that is gone ends no run
