"""Children: the processes of the next runs are started once a run is timed, and wait with their imports done.

Each run has a process, a process group and a log to itself, as before. Only the moment of the start differs: a child imports
the engine (2 s of processor time) when no run is timed, then sleeps until its first line of input, after which it reads the
request. Peak memory is the same, because a child imports before it reads a request in any case. While a run is scored,
further children start one after the other, because runs without scoring leave no time for imports. A child that ended while
it waited, or whose environment does not fit the next setting, is replaced. One that still imports when a run begins is
ended, so that nothing runs beside the clock.

A child whose search ends, in any way, reads the end of its input and ends too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.model.environment.mlx_environment import variables
from engine.system.user_cache import child_environment
from harness.machine.identity import available_gb
from harness.machine.processes import end_group

Process = subprocess.Popen[bytes]
RESULT, NEXT_LOG = "result.json", "next-{}.log"
FEW, MOST = 3, 12  # children that wait: in any case, and where their settings need the same variables
CHILD_GB, MEMORY_SHARE = 0.06, 1 / 30  # memory of a waiting child that no other process shares; of the available, for all


@dataclass(frozen=True)
class _Waiting:
    process: Process
    log: Path
    variables: Mapping[str, str]  # of MLX, in its environment
    imported: int  # descriptor at whose end the imports are done

    @property
    def ready(self) -> bool:
        """Whether the imports are done."""
        end = select.poll()
        end.register(self.imported)
        return bool(end.poll(0))


class Children:
    """The children of one study. `request` is the file of every request; `engine` names the module that a child imports
    ahead, "" none. `available`: the machine's available memory, GB."""

    def __init__(self, request: Path, engine: str = "", available: Callable[[], float] = available_gb) -> None:
        self.request, self._engine, self._available = request, engine, available
        self.result = request.with_name(RESULT)
        self._waiting: list[_Waiting] = []
        self._last: Mapping[str, str] = {}
        self._replaced = False  # whether a child had other variables than a setting
        self._numbers = itertools.count(1)

    def prepare(self, knobs: Mapping[str, Any] | None = None) -> None:
        """Let a child wait for the next run, with the variables of its knobs, or, as long as these are unknown, with those
        of the run before. Call this only while no run is timed."""
        wanted = self._last if knobs is None else variables(knobs)
        self._keep_fitting(wanted)
        if not self._waiting:
            self._add(wanted)

    def prepare_more(self) -> None:
        """Let another child wait for a later run, if the imports of the others are done and the number allows one more: up
        to `MOST` within a share of the available memory, `FEW` if settings need different variables. Call this only while
        no run is timed."""
        if len(self._waiting) < MOST and all(one.ready for one in self._waiting) and len(self._waiting) < self._most():
            self._add(self._last)

    def begin(self, log: Path, knobs: Mapping[str, Any]) -> Process:
        """The child that runs the request in the file, with the run's `log`. It begins at once; those that still import are
        ended, unless it is the only one. The caller ends it."""
        wanted = self._last = variables(knobs)
        self._keep_fitting(wanted)
        self._waiting.sort(key=lambda one: not one.ready)
        while self._waiting:
            waiting = self._waiting.pop(0)
            os.replace(waiting.log, log)
            os.close(waiting.imported)
            if _begin(waiting.process):
                self._end_importing()
                return waiting.process
            _end(waiting.process, waiting.log)
        child, imported = self._start(log, wanted)
        os.close(imported)
        _begin(child)
        return child

    def close(self) -> None:
        """End the waiting children."""
        while self._waiting:
            self._drop(self._waiting.pop())

    def _most(self) -> int:
        return FEW if self._replaced else min(MOST, max(FEW, int(self._available() * MEMORY_SHARE / CHILD_GB)))

    def _keep_fitting(self, wanted: Mapping[str, str]) -> None:
        """End the waiting children with other variables, and forget those that have ended."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one.process.poll() is None and one.variables == wanted:
                self._waiting.append(one)
            else:
                self._replaced |= one.variables != wanted
                self._drop(one)

    def _end_importing(self) -> None:
        for one in [one for one in self._waiting if not one.ready]:
            self._waiting.remove(one)
            self._drop(one)

    def _drop(self, one: _Waiting) -> None:
        os.close(one.imported)
        _end(one.process, one.log)

    def _add(self, wanted: Mapping[str, str]) -> None:
        log = self.request.parent / "logs" / NEXT_LOG.format(next(self._numbers))
        with contextlib.suppress(OSError):  # no room or no process now: the run's own start reports it
            child, imported = self._start(log, wanted)
            self._waiting.append(_Waiting(child, log, wanted, imported))

    def _start(self, log: Path, wanted: Mapping[str, str]) -> tuple[Process, int]:
        """A child, and the descriptor that ends with its imports."""
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "harness.run.worker", self._engine, str(self.request), str(self.result)]
        imported, importing = os.pipe()
        try:
            with open(log, "wb") as out:
                child = subprocess.Popen(
                    [*command, str(importing)], stdin=subprocess.PIPE, stdout=out, stderr=out, pass_fds=[importing],
                    env=child_environment(**wanted), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            os.close(imported)
            raise
        finally:
            os.close(importing)
        return child, imported


def _begin(child: Process) -> bool:
    """Let a child read its request; False if it has ended."""
    try:
        _input(child).write(b"\n")
        _input(child).flush()
    except OSError:
        return False
    return True


def _end(child: Process, log: Path) -> None:
    with contextlib.suppress(OSError):  # an unwritten line
        _input(child).close()
    end_group(child.pid)
    child.wait()
    log.unlink(missing_ok=True)


def _input(child: Process) -> IO[bytes]:
    assert child.stdin is not None
    return child.stdin
