"""Tests of the disk's probe."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import HeadraceError
from engine.disk.direct import not_direct
from harness.forecast.machine import disk


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of its fewest passes."""
    monkeypatch.setattr(disk, "PROBE_S", 0.0)


def test_a_new_file_is_read_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "FILE_BYTES", 32 << 20)
    found = disk.disk_speed((), 1 << 20, tmp_path)
    assert found.gbps > 0 and found.sd >= 0 and "32 MiB" in found.how and list(tmp_path.iterdir()) == []


def test_a_model_s_largest_file_is_read(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(10)), large.write_bytes(bytes(4 << 20))
    how = disk.disk_speed((small, large), 1 << 20, tmp_path).how
    assert "read from large" in how
    assert ("large, direct, blocks" in how) == (not not_direct(large))


def test_a_disk_without_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "not_direct", lambda file: f"io_mode=direct is not possible for {file}")
    file = tmp_path / "large"
    file.write_bytes(bytes(4 << 20))
    assert "buffered, for this disk has no direct reads" in disk.disk_speed((file,), 1 << 20, tmp_path).how


def test_the_first_half_of_the_passes_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is twice as fast for its first two passes."""
    clock = [0.0]
    monkeypatch.setattr(disk.time, "perf_counter", lambda: clock[0])

    def reads(*_: object, shuffled: int, **others: object) -> int:
        clock[0] += 0.5 if shuffled < 2 else 1.0
        return 1_000_000_000

    monkeypatch.setattr(disk, "plain_reads", reads)
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    found = disk.disk_speed((tmp_path / "large",), 1 << 20, tmp_path)
    assert (found.gbps, found.sd) == (1, 0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="name another folder with --folder"):
        disk.disk_speed((), 1 << 20, tmp_path / "missing")
