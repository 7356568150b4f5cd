"""File locks: a second holder is refused, and a file system without locks is noted once."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from engine.system.file_lock import lock


def test_a_second_holder_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        assert lock(first, tmp_path)
        with pytest.raises(BlockingIOError):
            lock(second, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def without(*arguments: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", without)
    with open(tmp_path / "lock", "w") as f:
        assert not lock(f, tmp_path) and not lock(f, tmp_path, wait=True)
    assert capsys.readouterr().err.splitlines() == [
        f"note: the file system of {tmp_path} has no locks; let one command at a time write there"
    ]


def test_other_errors_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with open(tmp_path / "lock", "w") as f, pytest.raises(OSError, match="broken"):
        lock(f, tmp_path)
