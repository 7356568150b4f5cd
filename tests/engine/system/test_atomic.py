"""Atomic writes: the old file or the new one, whatever fails; no temporary file stays behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.system import atomic

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_content_and_name(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a", b"\x00\xff")
    atomic.write_text(tmp_path / "b", "é")
    atomic.write_json(tmp_path / "c", {"x": [1]}, durable=False, concurrent=True)
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "é".encode()
    assert json.loads((tmp_path / "c").read_text()) == {"x": [1]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise FULL

    file = tmp_path / "file"
    atomic.write_text(file, "old")
    with monkeypatch.context() as m:
        m.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            atomic.write_text(file, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic.write_text(file, "old")

    def stop_half_way() -> None:
        with atomic.replacing(file) as partial:
            partial.write_text("n")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half"):
        stop_half_way()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_what_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A durable write syncs the content before the rename and the folder after it; another one syncs nothing."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b))[1])
    atomic.write_bytes(tmp_path / "a", b"1")
    assert steps == ["sync", "rename", "sync"]
    atomic.write_bytes(tmp_path / "a", b"2", durable=False)
    assert steps[3:] == ["rename"]


def test_temporary_names(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "x.npz", concurrent=True) as partial:
        assert partial.name == f".x.npz.{os.getpid()}.tmp"
        partial.touch()
    with atomic.replacing(tmp_path / "x.npz") as partial:
        assert partial == atomic.temporary(tmp_path / "x.npz") and partial.name == ".x.npz.tmp"
        partial.touch()


def test_the_message_names_the_remedy(tmp_path: Path) -> None:
    assert atomic.cannot_write(Path("f"), FULL) == "f cannot be written (No space left on device); make room"
    denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert atomic.cannot_write(Path("f"), denied) == "f cannot be written (Permission denied); make its folder writable"
    assert atomic.cannot_write(Path("f"), denied, "choose another").endswith("; choose another")
