"""System calls: those of the engine's reads and of the search's files and processes, each tried once."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from engine.disk.direct import direct_unit, memory_alignment, open_file
from engine.system import atomic
from engine.system.file_lock import lock
from engine.system.open_files import MOST, limits
from engine.system.page_cache import cached_share, drop_cache
from harness.machine.awake import keep_awake
from harness.machine.processes import end_group

from .check import Answer, Check, Place

SMALL = 1 << 20


def checks() -> list[Check]:
    """The checks of the group calls."""
    return [
        Check("calls", "reads into memory (preadv)", _preadv, "Nothing can be streamed."),
        Check("calls", "direct reads", _direct, "io_mode=direct is refused for files on this disk."),
        Check(
            "calls",
            "pages in the cache (mincore)",
            _mincore,
            "A cold start cannot be verified, so page_cache=cold is refused.",
        ),
        Check("calls", "emptying the page cache", _drop, "page_cache=cold is refused; runs depend on what was read before."),
        Check("calls", "file locks (flock)", _flock, "Two searches in one folder are not kept apart."),
        Check("calls", "atomic writes (fsync, rename)", _atomic, "Rows cannot be saved here."),
        Check("calls", "limit of open files", _raise_files, "A model of very many shards may not open."),
        Check("calls", "ending a process group", _end_group, "A run that hangs may stay behind."),
        Check("calls", "keeping the machine awake", _awake, "The machine may go to sleep during a study."),
    ]


def _small(place: Place) -> Path:
    file = place.folder / "small.bin"
    if not file.exists():
        with open(file, "wb") as f:
            f.write(os.urandom(SMALL))
            f.flush()
            os.fsync(f.fileno())
    return file


def _preadv(place: Place) -> Answer:
    file = _small(place)
    fd = open_file(file, False)
    try:
        parts = [bytearray(1000), bytearray(3000)]
        count = os.preadv(fd, parts, 500)
    finally:
        os.close(fd)
    if count != 4000 or b"".join(parts) != file.read_bytes()[500:4500]:
        raise OSError(f"{count} of 4000 bytes, or wrong ones")
    return Answer("works", {})


def _direct(place: Place) -> Answer:
    file = _small(place)
    fd = open_file(file, True)
    try:
        alignment = memory_alignment(fd, file)
    finally:
        os.close(fd)
    unit = direct_unit()
    text = f"in units of {unit // 1024} KiB, memory aligned to {alignment} bytes"
    return Answer(text, {"direct_unit": unit, "memory_alignment": alignment})


def _mincore(place: Place) -> Answer | None:
    file = _small(place)
    file.read_bytes()
    share = cached_share([file])
    if share is not None and share < 0.9:
        raise OSError(f"{share:.0%} of a file that was just read are reported as cached")
    return None if share is None else Answer("sees a file that was just read", {})


def _drop(place: Place) -> Answer:
    file = _small(place)
    file.read_bytes()
    how, share = drop_cache([file]), cached_share([file])
    if how == "not possible" or (share or 0) > 0.05:
        raise OSError(f"{how}: {share or 0:.0%} of the file stay cached")
    return Answer(how + ("" if share is not None else ", not verified"), {"drop_cache": how})


def _flock(place: Place) -> Answer:
    with open(place.folder / "lock", "w") as first, open(place.folder / "lock", "w") as second:
        if not lock(first, place.folder):
            raise OSError("the file system has none")
        try:
            lock(second, place.folder)
        except BlockingIOError:
            return Answer("works", {})
    raise OSError("two holders have the same lock at once")


def _atomic(place: Place) -> Answer:
    begin = time.perf_counter()
    atomic.write_text(place.folder / "row", "1")
    atomic.write_text(place.folder / "row", "2")
    if (place.folder / "row").read_text() != "2":
        raise OSError("a file that was replaced has its old content")
    ms = (time.perf_counter() - begin) / 2 * 1000
    return Answer(f"{ms:.1f} ms a write", {"atomic_write_ms": ms})


def _raise_files(place: Place) -> Answer:
    soft, most = limits()
    wanted = min(most, MOST)
    if soft >= wanted:
        return Answer(f"{soft} suffice", {})
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return Answer(f"can be raised from {soft} to {wanted}", {})


def _end_group(place: Place) -> Answer:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    ended = end_group(child.pid)
    if not ended or child.wait(5) != -signal.SIGTERM:
        raise OSError("the process still runs")
    return Answer("works", {})


def _awake(place: Place) -> Answer:
    notes: list[str] = []
    with keep_awake(notes.append):
        pass
    if notes:
        raise OSError(notes[0].partition(": ")[2])
    return Answer("works", {})
