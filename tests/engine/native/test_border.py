"""The border between Python and the native reader: one clear error for what does not fit, and no reference is lost.

The tests cover engine/native/reading and engine/native/pool.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cores import Books, a_reader, closed

from engine.native import core

SANITIZED = bool(os.environ.get("HEADRACE_NATIVE"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * 64)
    return path


@pytest.fixture
def reader(file: Path) -> Iterator[core.Reader]:
    reader, fds = a_reader(file)
    yield reader
    closed(reader, fds)


VALID: dict[str, Any] = {
    "fds": [0], "memory": [1], "threads": 1, "block_bytes": 4096, "alignment": 1, "least": 1, "apart": False,
    "scratch_unit": 4096, "gbps": 0.0, "device": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0), ("threads", 100_000), ("block_bytes", 0), ("block_bytes", 2**62), ("alignment", 0),
        ("alignment", 5000), ("alignment", 2**40), ("least", 0), ("least", -100), ("scratch_unit", 3), ("gbps", -1.0),
        ("gbps", float("nan")), ("gbps", float("inf")), ("memory", []), ("memory", [-1]), ("fds", [2**40]), ("fds", [-1]),
    ],
)  # fmt: skip
def test_readers_refuse_what_they_cannot_do(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"threads are|outside"):
        core.Reader(**{**VALID, name: value})
    with pytest.raises(TypeError):
        core.Reader(**{**VALID, "fds": ["a"]})
    with pytest.raises(OSError, match="no_such_library"):
        core.Reader(**{**VALID, "device": "no_such_library"})


def test_ranges_are_checked(reader: core.Reader) -> None:
    into = bytearray(10)
    view = memoryview(into)
    wrong: list[tuple[Any, type[Exception]]] = [
        (1, TypeError), ((0, 0), TypeError), ((0, 0, b"12"), BufferError), ((0, 0, view[::2]), BufferError),
        ((1, 0, view), ValueError), ((-1, 0, view), ValueError), ((0, -1, view), ValueError),
        ((0, 2**63 - 1, view), ValueError), ((0, 2**64, view), OverflowError),
        ((0, 0, np.zeros((3, 4), np.uint8).T), BufferError),
    ]  # fmt: skip
    for one, error in wrong:
        with pytest.raises(error):
            reader.submit([(0, 0, view), one])
    wrong.clear()
    del one, view
    into.append(0)  # no view of it is left
    found = reader.submit([(0, 2**62, memoryview(into))]).wait()
    assert found is not None and found[0] in (core.END_OF_FILE, core.READ)


def test_nothing_to_read_is_done_at_once(reader: core.Reader) -> None:
    for ranges in ([], [(0, 0, memoryview(b"").cast("B"))][:0], [(0, 10**12, memoryview(bytearray(0)))]):
        load = reader.submit(ranges)
        assert load.done and load.wait() is None and not load.cancel()
        load.hurry()


def test_expert_numbers_are_integers_in_this_machines_order(reader: core.Reader) -> None:
    books = Books(reader, 8, 8.0)
    pool, _ = books.pool(4, np.array([], int))
    other = ">" if sys.byteorder == "little" else "<"
    for ids, error in (
        (np.array([1, 2], f"{other}i4"), TypeError),
        (np.array([[1, 2], [3, 4]], np.int32).T, BufferError),
        (np.array([1, 2, 3, 4])[::2], ValueError),
        (np.array([1, 2], np.int16), TypeError),
        (np.array([1.0], np.float32), TypeError),
        (np.array([2**40]), ValueError),
    ):
        with pytest.raises((error, BufferError)):
            pool.request(ids, None, False)
    assert (books.slot_of == -1).all()
    for wrong in (np.zeros(2, np.float32), np.zeros(2, f"{other}i4")):
        with pytest.raises(TypeError):
            pool.decode(np.array([0, 1]), 1, wrong)
    with pytest.raises(TypeError):
        core.Layer(np.zeros(8, np.float32), books.warmth, books.uses, books.counts, 8.0)
    for half_life in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="half_life"):
            core.Layer(books.slot_of, books.warmth, books.uses, books.counts, half_life)


def test_pools_refuse_places_that_do_not_fit(reader: core.Reader) -> None:
    books, memory = Books(reader, 4, 8.0), np.zeros(16, np.uint8)
    file, offset, fixed = np.zeros(4, np.int32), np.zeros(4, np.int64), np.zeros(4, np.uint8)
    far = np.full(4, 2**63 - 1)
    whole = (file, offset, 8, memory, 0, -1)

    def pool(sources: list[Any], made: list[Any], staging: int = 0, keeps: bool = False) -> core.Pool:
        return core.Pool(books.layer, reader, 2, fixed, sources, made, staging, keeps, None)

    for source in (
        (file + 1, offset, 8, memory, 0, -1), (file - 1, offset, 8, memory, 0, -1), (file, offset - 1, 8, memory, 0, -1),
        (file, far, 8, memory, 0, -1), (file, offset, 9, memory, 0, -1), (file, offset, -1, None, 0, -1),
        (file, offset, 8, None, 0, -1), (file, offset, 8, None, 60, -1), (file, offset, 2**62, None, 2**62, -1),
        (file, offset, 8, None, -8, -1), (file[:3], offset, 8, memory, 0, -1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="source"):
            pool([source], [], 64 if source[3] is None and source[4] else 0)
    for made in (
        ("join", [0, 0], [2**63 + 8, 2**63 + 8], 4, 0.0, None, memory), ("join", [0], [8], 4, 0.0, None, memory),
        ("widen_bf16", [62], [4], 0, 0.0, None, memory), ("widen_bf16", [-4], [4], 0, 0.0, None, memory),
        ("widen_bf16", [0], [4], 0, 0.0, None, None), ("bias_f32", [], [], 0, 8.0, None, memory),
        ("else", [0], [4], 0, 0.0, None, memory),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="do not fit"):
            pool([whole], [made], 64)
    for wrong in ([1], ["a"]):
        with pytest.raises(TypeError, match="tuples"):
            pool(wrong, [])
        with pytest.raises(TypeError, match="tuples"):
            pool([whole], wrong)
    with pytest.raises(ValueError, match="nothing arrives"):
        pool([], [], 64, keeps=True)


def test_no_reference_is_lost(reader: core.Reader) -> None:
    books = Books(reader, 4, 8.0)
    file, offset, *slots = np.zeros(4, np.int32), np.zeros(4, np.int64), np.zeros(8, np.uint8), np.zeros(8, np.uint8)
    arrays = [books.slot_of, books.warmth, file, offset, *slots]
    into = bytearray(100)
    reader.record(True)
    reader.inject(error=errno.EIO, times=50)

    def use(source_bytes: int) -> None:
        sources: list[Any] = [(file, offset, source_bytes, memory, 0, -1) for memory in slots]
        try:
            pool = core.Pool(books.layer, reader, 2, np.zeros(4, np.uint8), sources, [], 0, False, None)
        except ValueError:
            return
        pool.request(np.array([0, 1]), None, False)
        pool.settle(np.array([0, 1]))
        pool.failures(), pool.guessed(), pool.arrived(), reader.calls()

    counts = []
    for _ in range(3):
        for number in range(40):
            use(4 + number % 2)
            for ranges in ([(0, 0, into), (9, 0, into)], [(0, 0, into)]):
                try:
                    reader.submit(ranges).wait()
                except ValueError:
                    continue
        counts.append([*map(sys.getrefcount, arrays), sys.getrefcount(reader), sys.getrefcount(books.layer)])
    assert counts[0] == counts[-1]
    into.append(0)


LIMITED = """
import resource, sys
sys.path[:0] = ["tests", "."]
from pathlib import Path
from cores import a_reader
reader, fds = a_reader(Path(sys.argv[1]), threads=1000)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
into = bytearray(10_000)
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]) * 2**20,) * 2)
try:
    print(reader.submit([(0, 0, memoryview(into))]).wait(), 0 < reader.threads < 1000)
except RuntimeError as e:
    print(e)
"""


@pytest.mark.skipif(SANITIZED or sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(("room", "expected"), [(200, "None True"), (1, "no thread for reads can be started")])
def test_a_system_that_refuses_threads(file: Path, room: int, expected: str) -> None:
    """The reader gets by with fewer threads; without any there is one error, and nothing stays queued."""
    words = [sys.executable, "-c", LIMITED, str(file), str(room)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith(expected), done.stdout + done.stderr


@pytest.mark.skipif(SANITIZED, reason="the sanitizers end the process instead")
def test_without_memory_for_staging_the_slot_stays_free(reader: core.Reader) -> None:
    books = Books(reader, 4, 8.0)
    source = (np.zeros(4, np.int32), np.zeros(4, np.int64), 8, None, 0, -1)
    pool = core.Pool(books.layer, reader, 2, np.zeros(4, np.uint8), [source], [], 2**55, False, None)
    with pytest.raises(MemoryError):
        pool.request(np.array([0, 1]), None, False)
    assert (books.slot_of == -1).all() and pool.settled
