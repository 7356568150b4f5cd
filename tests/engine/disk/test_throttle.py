"""Throttle: one bandwidth over all threads, without credit for idle time."""

from __future__ import annotations

import ctypes
import heapq
import subprocess
import time
from pathlib import Path

import pytest
from reads import ranges, reader

from engine.native import compiler
from engine.native.sources import FOLDER

SOURCE = """
#include "reading/throttle.hpp"
extern "C" void *make(double gbps) { return new headrace::Throttle(gbps); }
extern "C" double end(void *one, std::int64_t size, double requested) {
    return static_cast<headrace::Throttle *>(one)->end(size, requested);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The reader's throttle by itself, so that a test can give it a clock."""
    if compiler.problem(compiler.command()):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("throttle")
    (folder / "throttle.cpp").write_text(SOURCE)
    command = [*compiler.command(), "-std=c++17", "-shared", "-fPIC", f"-I{FOLDER}", "throttle.cpp", "-o", "throttle.so"]
    subprocess.run(command, check=True, cwd=folder, timeout=120)
    library = ctypes.CDLL(str(folder / "throttle.so"))
    library.make.restype, library.make.argtypes = ctypes.c_void_p, [ctypes.c_double]
    library.end.restype, library.end.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double]
    return library


class Disk:
    """The simulated disk as a thread sees it that has a clock, whose sleeps take `late` seconds too long."""

    def __init__(self, library: ctypes.CDLL, gbps: float, late: float = 0.0) -> None:
        self.now, self.slept, self._late = 0.0, 0, late
        self._library, self._throttle = library, library.make(gbps)

    def finish(self, nbytes: int, requested: float) -> None:
        """What the reader does after a read."""
        wait = self._library.end(self._throttle, nbytes, requested) - self.now
        if wait > 0:
            self.now += wait + self._late
            self.slept += 1


@pytest.mark.parametrize("gbps", [0.02, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("kib", [4, 1024, 8192])
@pytest.mark.parametrize("threads", [1, 4, 16])
@pytest.mark.parametrize("late", [0.0, 0.001])
def test_bandwidth_is_one_budget_over_all_threads(
    library: ctypes.CDLL, gbps: float, kib: int, threads: int, late: float
) -> None:
    """Threads of a disk that takes no time itself, each with its own time: block by block no sooner than a disk of that
    speed, and no later than one sleep behind it, however often a sleep took too long."""
    disk = Disk(library, gbps, late)
    nbytes, blocks, begin = kib * 1024, 500, 3.0
    turns = [(begin, thread) for thread in range(threads)]
    ended = []
    for _ in range(blocks):
        disk.now, thread = heapq.heappop(turns)
        disk.finish(nbytes, begin)
        ended.append(disk.now)
        heapq.heappush(turns, (disk.now, thread))
    for number, end in enumerate(sorted(ended), start=1):
        due = begin + number * nbytes / (gbps * 1e9)
        assert due - 1e-9 <= end <= due + late + 1e-9


def test_idle_time_gives_no_credit(library: ctypes.CDLL) -> None:
    disk = Disk(library, 0.001)
    for begin in (1.0, 100.0, 100.5, 1e6):
        disk.now = begin
        for number in range(1, 11):
            disk.finish(10_000, begin)
            assert disk.now == pytest.approx(begin + number * 0.01)


def test_a_disk_slower_than_the_bandwidth_waits_for_nothing(library: ctypes.CDLL) -> None:
    disk = Disk(library, 1.0)
    for _ in range(10):
        started = disk.now
        disk.now += 0.1
        disk.finish(1_000_000, started)
    assert not disk.slept


@pytest.mark.parametrize("threads", [1, 4])
def test_the_bandwidth_is_held_by_the_reader(file: Path, threads: int) -> None:
    """300 kB at 1 MB/s take 0.3 s; the disk alone would take a millisecond. An idle time before gives no credit."""
    r = reader(file, threads=threads, kib=16, gbps=0.001)
    time.sleep(0.1)
    begin = time.perf_counter()
    loads = [r.native.submit(ranges([(i * 30_000, 30_000)])[0]) for i in range(10)]
    for load in loads:
        assert load.wait() is None
    assert time.perf_counter() - begin >= 0.3
    r.close()
