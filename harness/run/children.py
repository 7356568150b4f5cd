"""Children: the processes of the next runs are started once a run is timed, and wait with their imports done.

Each run has a process, a process group and a log to itself, as before. Only the moment of the start differs: a child imports
the engine (2 s of processor time) when no run is timed, then sleeps until its first line of input, after which it reads the
request. Peak memory is the same, because a child imports before it reads a request in any case. While a run is scored,
further children start one after the other, because runs without scoring leave no time for imports. A child that ended while
it waited, or whose environment does not fit the next setting, is replaced.

A child whose search ends, in any way, reads the end of its input and ends too.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.model.environment.mlx_environment import variables
from engine.system.user_cache import child_environment
from harness.machine.processes import end_group

Process = subprocess.Popen[bytes]
RESULT, NEXT_LOG = "result.json", "next-{}.log"
MOST = 3  # children that wait; each takes 80 MB
IMPORTS_S = 2.5  # until a child has done its imports, on a machine of 2 cores that is otherwise idle


@dataclass(frozen=True)
class _Waiting:
    process: Process
    log: Path
    variables: Mapping[str, str]  # of MLX, in its environment


class Children:
    """The children of one study, of which at most `MOST` wait. `request` is the file of every request; `engine` names the
    module that a child imports ahead, "" none."""

    def __init__(self, request: Path, engine: str = "") -> None:
        self.request, self._engine = request, engine
        self.result = request.with_name(RESULT)
        self._waiting: list[_Waiting] = []
        self._last: Mapping[str, str] = {}
        self._numbers = itertools.count(1)
        self._started_s = -math.inf

    def prepare(self, knobs: Mapping[str, Any] | None = None) -> None:
        """Let a child wait for the next run, with the variables of its knobs, or, as long as these are unknown, with those
        of the run before. Call this only while no run is timed."""
        wanted = self._last if knobs is None else variables(knobs)
        self._keep_fitting(wanted)
        if not self._waiting:
            self._add(wanted)

    def prepare_more(self) -> None:
        """Let another child wait for a later run, if the imports of the last one are done and fewer than `MOST` wait. Call
        this only while no run is timed."""
        if len(self._waiting) < MOST and time.monotonic() - self._started_s >= IMPORTS_S:
            self._add(self._last)

    def begin(self, log: Path, knobs: Mapping[str, Any]) -> Process:
        """The child that runs the request in the file, with the run's `log`. It begins at once. The caller ends it."""
        wanted = self._last = variables(knobs)
        self._keep_fitting(wanted)
        while self._waiting:
            waiting = self._waiting.pop(0)
            os.replace(waiting.log, log)
            if _begin(waiting.process):
                return waiting.process
            _end(waiting)
        child = self._start(log, wanted)
        _begin(child)
        return child

    def close(self) -> None:
        """End the waiting children."""
        while self._waiting:
            _end(self._waiting.pop())

    def _keep_fitting(self, wanted: Mapping[str, str]) -> None:
        """End the waiting children with other variables, and forget those that have ended."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one.process.poll() is None and one.variables == wanted:
                self._waiting.append(one)
            else:
                _end(one)

    def _add(self, wanted: Mapping[str, str]) -> None:
        log = self.request.parent / "logs" / NEXT_LOG.format(next(self._numbers))
        self._started_s = time.monotonic()
        with contextlib.suppress(OSError):  # no room or no process now: the run's own start reports it
            self._waiting.append(_Waiting(self._start(log, wanted), log, wanted))

    def _start(self, log: Path, wanted: Mapping[str, str]) -> Process:
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "harness.run.worker", self._engine, str(self.request), str(self.result)]
        with open(log, "wb") as out:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=child_environment(**wanted),
                start_new_session=True,
            )  # fmt: skip


def _begin(child: Process) -> bool:
    """Let a child read its request; False if it has ended."""
    try:
        _input(child).write(b"\n")
        _input(child).flush()
    except OSError:
        return False
    return True


def _end(waiting: _Waiting) -> None:
    with contextlib.suppress(OSError):  # an unwritten line
        _input(waiting.process).close()
    end_group(waiting.process.pid)
    waiting.process.wait()
    waiting.log.unlink(missing_ok=True)


def _input(child: Process) -> IO[bytes]:
    assert child.stdin is not None
    return child.stdin
