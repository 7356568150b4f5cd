"""Files of a store: a full disk and an unreadable source are one line each, and packing resumes afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import contents, one_line

from engine import CheckpointError, HeadraceError
from engine.packing import files
from engine.packing.pack import pack_store

Make = Callable[..., Path]


@pytest.mark.parametrize("place", ["posix_fallocate", "pwrite", "fsync", "write"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_disk_that_fills(
    checkpoint: Make, store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, after: int
) -> None:
    calls = 0

    def full(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        return call

    source, path = checkpoint("qwen3_moe", 4), tmp_path / "store"
    with monkeypatch.context() as m:
        if place == "write":
            m.setattr(files, "write_whole", full(files.write_whole))
        else:
            m.setattr(os, place, full(getattr(os, place)))
        with pytest.raises(
            HeadraceError, match=r"is full, with \d of 5 layers to go; make room|cannot be written \(No space"
        ) as e:
            pack_store(source, path)
        one_line(e)
    assert not list(path.glob(".*.tmp")) or not after
    pack_store(source, path)
    assert contents(path) == contents(store("qwen3_moe", 4))


def test_a_source_that_cannot_be_read(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = checkpoint("qwen3_moe", 4)
    with monkeypatch.context() as m:
        m.setattr(os, "preadv", broken)
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors cannot be read at byte \d+ \(Input/output error\)"
        ) as e:
            pack_store(source, tmp_path / "store")
        one_line(e)
    pack_store(source, tmp_path / "store")
