"""Page cache: dropped, filled and measured."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import (
    prepare_page_cache,
)
from engine.system.page_cache import RUN_PAGES, _resident, cached_share, drop_cache


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    paths = tmp_path / "a", tmp_path / "b"
    for path, size in zip(paths, (20 << 20, 5_000_001), strict=True):
        path.write_bytes(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    return paths


def test_linux_drops_pages_with_posix_fadvise(files: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr("engine.system.page_cache.sys.platform", "linux")
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: asked.append((os.fstat(fd).st_size, *rest)), raising=False)
    assert drop_cache(files) == "posix_fadvise"
    assert asked == [(file.stat().st_size, 0, 0, 4) for file in files]
    monkeypatch.delattr(os, "posix_fadvise")
    assert drop_cache(files) == "not possible"


def test_macos_drops_pages_with_msync(files: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """msync gets whole, page-aligned files; an empty file has no pages and is skipped."""
    asked: list[tuple[int, int, int]] = []

    def msync(address: Any, length: Any, flags: int) -> int:
        asked.append((address.value % mmap.PAGESIZE, length.value, flags))
        return 0

    (files[0].parent / "empty").touch()
    monkeypatch.setattr("engine.system.page_cache.sys.platform", "darwin")
    assert drop_cache([*files, files[0].parent / "empty"], SimpleNamespace(msync=msync)) == "msync"
    assert asked == [(0, file.stat().st_size, 2) for file in files]
    assert drop_cache(files, SimpleNamespace(msync=lambda *_: -1)) == "not possible"


def test_large_files_are_sampled(tmp_path: Path) -> None:
    """With the first quarter of 4,096 pages cached, a sample of every fourth run of pages gives the same share."""
    import ctypes
    import os

    file = tmp_path / "weights"
    file.write_bytes(bytes(4096 * os.sysconf("SC_PAGESIZE")))
    prepare_page_cache(file, "cold")
    with open(file, "rb", buffering=0) as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        f.read(1024 * os.sysconf("SC_PAGESIZE"))
    libc = ctypes.CDLL(None)
    every, some = _resident(file, libc, RUN_PAGES), _resident(file, libc, 4 * RUN_PAGES)
    assert (len(every), len(some)) == (4096, 1024)
    assert every.mean() == some.mean() == cached_share([file]) == 0.25
    assert cached_share([tmp_path / "none"]) is None
