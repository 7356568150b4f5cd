"""Read source: whether the bytes that were read came from the disk or from a cache, by the system's own count.

A read that was asked to be direct can still be served by the page cache: macOS does so silently where a read does not fit,
where pages are cached already, and for files that APFS keeps compressed. Network and virtual disks may not be counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.disk.direct import compressed_files

DISK, CACHE, BOTH = "disk", "cache", "both"
MOST_CACHED, LEAST_CACHED = 0.05, 0.95  # shares of the bytes up to which reads count as from the disk, and as from a cache

MOSTLY = 0.5  # buffered reads find some bytes in the page cache by their nature


def source_of(cached_share: float | None) -> str | None:
    """The name of the source: disk, cache or both, from the share of the bytes that did not come from the disk."""
    if cached_share is None:
        return None
    return DISK if cached_share <= MOST_CACHED else CACHE if cached_share >= LEAST_CACHED else BOTH


def read_note(io_mode: str, cached_share: float | None, *, limited: bool = False, files: Iterable[Path] = ()) -> str | None:
    """One line if the reads were not what `io_mode` promises, or not those of a disk; None otherwise.

    `limited`: the bandwidth is simulated, so buffered reads from the page cache are intended. `files` are those that were
    read.
    """
    source = source_of(cached_share)
    if cached_share is None or source == DISK:
        return None
    if io_mode == "buffered":
        return (
            None
            if limited or cached_share < MOSTLY
            else (
                f"{cached_share:.0%} of the bytes came from the page cache and not from the disk; for the disk's speed "
                "start with page_cache=cold, or set io_mode=direct"
            )
        )
    packed = compressed_files(files)
    if packed:
        return (
            f"io_mode=direct, but {cached_share:.0%} of the bytes came through the page cache: APFS keeps {packed[0].name} "
            "compressed; copy the checkpoint with ditto --nohfsCompression"
        )
    return (
        f"io_mode=direct, but by the system's count {cached_share:.0%} of the bytes did not come from the disk: they were "
        "cached before (start with page_cache=cold), or this disk is a network or virtual one that is not counted"
    )
