"""Examination: runs all checks in a worker process, with a limit for each and one for all.

A check that crashes or hangs fails with that as its reason, and a new worker goes on after it. Checks that do not fit into
the time are named, with that reason.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from engine.errors import HeadraceError
from engine.system.strict_json import from_json
from engine.system.user_cache import child_environment
from harness.machine.processes import end_group

from .check import FAILS, Check, Result
from .worker import checks

WHOLE_S = 55.0  # for all checks together
WORKER = ("harness.doctor.worker",)
Told = Callable[[Result], None]


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder on the disk to measure, removed at the end. Raises `HeadraceError` if none can be made there."""
    try:
        with tempfile.TemporaryDirectory(prefix=".headrace-doctor-", dir=parent, ignore_cleanup_errors=True) as made:
            yield Path(made)
    except OSError as e:
        reason = e.strerror or e
        raise HeadraceError(f"no file can be written in {parent} ({reason}); name another folder with --folder") from e


def examine(
    folder: Path,
    told: Told = lambda result: None,
    *,
    all_checks: Sequence[Check] | None = None,
    worker: Sequence[str] = WORKER,
    whole_s: float = WHOLE_S,
) -> list[Result]:
    """The results of all checks in their order; `told` receives each as it comes. `folder` is empty and on the disk to
    measure. Tests replace the checks and the module that runs them."""
    listed = list(checks() if all_checks is None else all_checks)
    results: list[Result] = []
    deadline = time.monotonic() + whole_s
    while len(results) < len(listed):
        before = len(results)
        reason, seconds = "", 0.0
        if time.monotonic() < deadline:
            with _Worker(worker, folder, before) as process:
                for result in process.results(listed, deadline):
                    results.append(result)
                    told(result)
                reason, seconds = process.reason, process.seconds
        if len(results) < len(listed):
            failed = listed[len(results)].failed(reason or f"not tried: the {whole_s:g} s for all checks were over", seconds)
            results.append(failed)
            told(failed)
    return results


class _Worker:
    """A worker that runs the checks from number `first` on."""

    def __init__(self, module: Sequence[str], folder: Path, first: int) -> None:
        self.reason, self.seconds = "", 0.0
        self._first = first
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", *module, str(folder), str(first)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
            env=child_environment(),
        )  # fmt: skip
        assert self._process.stdout is not None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_lines_of, args=(self._process.stdout, self._lines), daemon=True).start()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        end_group(self._process.pid, grace_s=0.5)
        self._process.wait()
        self._errors.close()

    def results(self, listed: Sequence[Check], deadline: float) -> Iterator[Result]:
        """The results as they come. After the last one, `reason` says why a check has none; it is empty if all have one."""
        number, begin, limit_s = self._first, time.monotonic(), listed[self._first].limit_s
        while number < len(listed):
            left = min(begin + limit_s, deadline) - time.monotonic()
            try:
                line = self._lines.get(timeout=max(0.0, left))
            except queue.Empty:
                whole = begin + limit_s > deadline
                self.reason = "" if whole else f"no answer within {limit_s:g} s"
                break
            if not line:
                self.reason = self._ended()
                break
            said: dict[str, Any] = from_json(line)
            if "begin" in said:
                begin, limit_s = time.monotonic(), listed[number].limit_s
                continue
            yield Result(**said)
            number += 1
        self.seconds = time.monotonic() - begin

    def _ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"ended with {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        return f"its process {how}" + (f": {lines[-1][:200]}" if lines else "")


def _lines_of(stream: IO[bytes], into: queue.SimpleQueue[bytes]) -> None:
    for line in stream:
        into.put(line)
    into.put(b"")


def counts(results: Sequence[Result]) -> dict[str, int]:
    """The number of results by state."""
    found: dict[str, int] = {}
    for result in results:
        found[result.state] = found.get(result.state, 0) + 1
    return found


def failures(results: Sequence[Result]) -> list[Result]:
    """The checks that failed."""
    return [result for result in results if result.state == FAILS]
