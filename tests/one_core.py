"""One core: in a worker of several, a test's own thread and MLX's thread keep to the same core.

MLX's CPU backend gives each operation to a thread of its own. Where the two threads are on two cores, each small operation
wakes one core and moves memory between their caches: a token of a tiny model takes about twice the processor time. Threads
that a test starts inherit its core, those that read included; rooms that test what threads do side by side keep every core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

TASKS = Path("/proc/self/task")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _mlx_threads() -> list[int]:
    """The thread that MLX starts for its first operation on the CPU. Nothing has computed before this file is imported."""
    before = set(os.listdir(TASKS))
    mx.eval(mx.add(mx.zeros(1), 1, stream=mx.cpu))
    return [int(thread) for thread in set(os.listdir(TASKS)) - before]


THREADS = [0, *_mlx_threads()] if WORKER and len(ALL) > 1 else []


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread and MLX's to one core, each worker to another one. Without workers, or where the system cannot do it,
    nothing changes."""
    if not THREADS:
        yield
        return
    try:
        _keep(THREADS, {sorted(ALL)[int(WORKER.removeprefix("gw")) % len(ALL)]})
        yield
    finally:
        _keep(THREADS, ALL)


def _keep(threads: list[int], cores: set[int]) -> None:
    for thread in threads:
        os.sched_setaffinity(thread, cores)
