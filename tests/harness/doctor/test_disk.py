"""Disk: every block size and mode is measured, and reads that did not come from the disk are not taken for it."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from harness.doctor import disk
from harness.doctor.check import FAILS, WORKS, Place

Usage = namedtuple("Usage", "free")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MOST_BYTES", 4 << 20), ("LEAST_BYTES", 1 << 20), ("CHUNK", 1 << 20), ("READ_S", 0.01)):
        monkeypatch.setattr(disk, name, value)
    monkeypatch.setattr(disk, "BLOCKS_KIB", (64, 1024))


@pytest.mark.usefixtures("small")
def test_all_block_sizes_in_both_modes(tmp_path: Path) -> None:
    place = Place(tmp_path)
    write, *reads = disk.checks()
    assert write.result(place).figures["written_gb"] == (4 << 20) / 1e9
    found = [check.result(place) for check in reads]
    assert [(r.figures["io_mode"], r.figures["block_kib"]) for r in found if r.state == WORKS][:2] == [
        ("buffered", 64),
        ("buffered", 1024),
    ]
    for result in found:
        if result.state == FAILS:  # a file system without direct reads
            assert result.name.startswith("direct") and "io_mode=direct is not possible" in result.reason
        else:
            assert result.figures["gbps"] > 0 and result.figures["asked_gb"] > 0


@pytest.mark.usefixtures("small")
def test_reads_from_a_cache_are_not_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    write, *reads = disk.checks()
    write.result(place)
    counter = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(disk, "disk_bytes_read", lambda: next(counter))  # 1000 bytes a read of 1 MiB
    monkeypatch.setattr(disk, "plain_reads", lambda files, knobs, limit, first, **more: limit)
    direct = reads[-1].result(place)
    assert direct.figures["was_direct"] is False and "NOT direct" in direct.text


@pytest.mark.parametrize(
    ("disk_share", "cached", "direct"),
    [(1.0, 0.0, True), (1.0, None, True), (0.2, 0.0, False), (1.0, 0.9, False), (None, 0.0, True), (None, None, None)],
)
def test_whether_direct_was_direct(disk_share: float | None, cached: float | None, direct: bool | None) -> None:
    assert disk._was_direct(disk_share, cached) is direct


def test_a_full_disk_and_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: Usage(10 << 20))
    write, read, *_ = disk.checks()
    assert write.result(Place(tmp_path)).reason.endswith("name a folder on another one with --folder")
    assert read.result(Place(tmp_path)).reason == "there is no file to read, for it could not be written"
