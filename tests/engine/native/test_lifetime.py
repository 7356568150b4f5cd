"""The native reader's end: by several threads at once, with reads under way, at the interpreter's exit, and in a fork.

The tests cover engine/native/reading and engine/native/pool.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cores import a_reader, closed, forking

from engine.native import core


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lifetime") / "f"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes())
    return path


def test_several_threads_close_at_once(file: Path) -> None:
    for round_ in range(60):
        reader, fds = a_reader(file, threads=3)
        loads = [reader.submit([(0, at, memoryview(bytearray(3000)))]) for at in range(8)]
        waiting = threading.Thread(target=loads[-1].wait)
        ending = [threading.Thread(target=reader.close, args=(round_ % 2 == 0,)) for _ in range(3)]
        for thread in (waiting, *ending):
            thread.start()
        for thread in (waiting, *ending):
            thread.join(30)
            assert not thread.is_alive()
        assert reader.closed and all(load.done for load in loads) and reader.threads == 0
        closed(reader, fds)


@pytest.mark.parametrize("slow", ["held", "delayed", "throttled"])
def test_close_with_drop_does_not_wait_for_simulated_slowness(file: Path, slow: str) -> None:
    reader, fds = a_reader(file, threads=2, gbps=1e-7 if slow == "throttled" else 0.0)
    if slow == "held":
        reader.hold(True)
    elif slow == "delayed":
        reader.inject(delay_s=1000)
    loads = [reader.submit([(0, at, memoryview(bytearray(30_000)))], at > 1) for at in range(4)]
    waiting = threading.Thread(target=loads[0].wait)
    waiting.start()
    time.sleep(0.05)
    begin = time.monotonic()
    closed(reader, fds)
    waiting.join(30)
    assert not waiting.is_alive() and time.monotonic() - begin < 20
    failures = [load.wait() for load in loads]
    assert all(failure is not None and failure[0] == core.CANCELLED for failure in failures[2:])


def test_idle_time_of_a_simulated_disk_is_lost(file: Path) -> None:
    """20 kB at 200 kB/s take 0.1 s, also after a pause."""
    reader, fds = a_reader(file, threads=2, block=4096, gbps=0.0002)
    for _ in range(2):
        begin = time.monotonic()
        assert reader.submit([(0, 0, memoryview(bytearray(20_000)))]).wait() is None
        assert time.monotonic() - begin >= 0.1
        time.sleep(0.1)
    closed(reader, fds)


def test_a_dropped_load_keeps_its_buffers_until_no_thread_writes(file: Path) -> None:
    reader, fds = a_reader(file, threads=2)
    reader.inject(delay_s=0.02)
    for _ in range(5):
        reader.submit([(0, 0, np.zeros(60_000, np.uint8).data)])  # the only reference
    closed(reader, fds)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_are_left_to_the_interpreter(file: Path) -> None:
    reader, fds = a_reader(file, threads=2)
    before = {path.name for path in Path("/proc/self/task").iterdir()}
    assert reader.submit([(0, 0, memoryview(bytearray(9000)))]).wait() is None
    ours = [p for p in Path("/proc/self/task").iterdir() if p.name not in before]
    assert len(ours) == 2
    for task in ours:
        time.sleep(0.3)  # a thread starts with all signals blocked
        masks = dict(line.split(":\t") for line in (task / "status").read_text().splitlines() if ":\t" in line)
        blocked = int(masks["SigBlk"], 16)
        assert blocked >> (signal.SIGINT - 1) & 1 and not blocked >> (signal.SIGSEGV - 1) & 1
    closed(reader, fds)


START = """
import os, signal, sys, threading, time
sys.path[:0] = ["tests", "."]
import numpy as np
from pathlib import Path
from cores import Books
from engine.disk.reader import Reader
reader = Reader((Path(sys.argv[1]),), threads=3, block_bytes=4096, direct=False, gbps=None)
native = reader.native
books = Books(native, 8, 8.0)
pool, memory = books.pool(4, np.array([], int), size=5000)
into = np.zeros(50_000, np.uint8)
"""
HELD = """
native.hold(True)
load = native.submit([(0, 0, into.data)])
pool.request(np.array([0, 1]), None, True)
waiting = threading.Thread(target=load.wait, daemon=True)
waiting.start()
time.sleep(0.1)
"""
EXITS = {
    "end": ("", 0),
    "sys.exit": ("sys.exit(0)", 0),
    "exception": ("raise ValueError('wanted')", 1),
    "cycle": ("books.own = books, pool, load, reader", 0),
}
FORK = """
native.hold(True)
pool.request(np.array([0, 1]), None, False)
time.sleep(0.3)  # the address sanitizer's memory is locked while a thread starts, in the child for ever
child = os.fork()
if child == 0:
    signal.alarm(30)
    for call in (lambda: pool.settle(np.array([0])), lambda: pool.decode(np.array([5]), 1, np.zeros(1, np.int32)),
                 pool.take_in, pool.forget, lambda: pool.guess(np.array([6]), 2), lambda: native.hold(False),
                 lambda: native.submit([(0, 0, into.data)]), native.calls):
        try:
            call()
        except RuntimeError as e:
            assert "process made by fork" in str(e)
        else:
            sys.exit(3)
    del pool, books
    reader.close()
    if "HEADRACE_NATIVE" not in os.environ:  # the thread sanitizer knows no threads of a fork
        reader = Reader((Path(sys.argv[1]),), threads=2, block_bytes=4096, direct=False, gbps=None)
        assert reader.native.submit([(0, 0, into.data)]).wait() is None
    sys.exit(0)
_, status = os.waitpid(child, 0)
native.hold(False)
pool.settle(np.array([0, 1]))
print(status, memory[:10_000].tobytes() == Path(sys.argv[1]).read_bytes()[:10_000])
"""


def python(code: str, file: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", START + code, str(file)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_exits_with_reads_under_way(file: Path, how: str) -> None:
    code, status = EXITS[how]
    done = python(HELD + code, file)
    assert done.returncode == status, done.stderr
    assert "Fatal" not in done.stderr and ("wanted" in done.stderr) == (how == "exception")


def test_a_fork_with_pools(file: Path) -> None:
    done = python(FORK, file, forking())
    assert done.stdout.split() == ["0", "True"], done.stderr
