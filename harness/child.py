"""Run one trial in a process of its own, watch time and memory from outside, and say what became of it.

The child leads its own process group: Ctrl-C at the terminal reaches the search, not the trial, and a trial that must go
is killed with all it started. Watching costs two small reads of /proc every tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from engine import CheckpointError

from . import ROOT
from .columns import OBJECTIVES

GB = 1_000_000_000
POLL_S = 0.1
OUT_OF_MEMORY = ("[malloc] Unable to allocate", "Insufficient Memory", "MemoryError", "out of memory", "bad_alloc")


class Interrupted(Exception):
    """The search was told to stop at once; the trial was killed and has no row."""


@dataclass(frozen=True)
class Outcome:
    """A trial's fate: status and its reason, figures if ok, and what was seen from outside."""

    status: str
    reason: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    seen_peak_gb: float | None = None
    wall_s: float = 0.0


def run_child(
    request: Path,
    log: Path,
    *,
    timeout_s: float,
    limit_gb: float,
    interrupted: Callable[[], bool],
    started: Callable[[int], None],
) -> Outcome:
    """Measure what `request` asks for. `started` is told the process id; raises `Interrupted` when `interrupted()`, and
    `CheckpointError` if the engine cannot open the checkpoint at all."""
    result = request.with_name("result.json")
    result.unlink(missing_ok=True)
    log.parent.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    begin = time.monotonic()
    peak, verdict = 0.0, ""
    with open(log, "wb") as out:
        command = [sys.executable, "-m", "harness.trial", str(request), str(result)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=env, start_new_session=True)
        try:
            started(child.pid)
            process = psutil.Process(child.pid)
            while child.poll() is None:
                peak = max(peak, _peak_gb(process))
                if interrupted():
                    raise Interrupted
                if peak > limit_gb:
                    verdict = "oom"
                elif time.monotonic() - begin > timeout_s:
                    verdict = "timeout"
                if verdict:
                    break
                time.sleep(POLL_S)
        finally:
            _kill_group(child)
    wall = time.monotonic() - begin
    if verdict == "oom":
        return Outcome("oom", f"{peak:.3g} GB are above the limit of {limit_gb:.3g} GB", {}, peak, wall)
    if verdict == "timeout":
        return Outcome("timeout", f"no result within {timeout_s:g} s (budget.trial_timeout_s)", {}, peak, wall)
    status, reason, figures = _read(result, child.returncode, log)
    return Outcome(status, reason, figures, max(peak, figures.get("peak_memory_gb") or 0.0) or None, wall)


def _peak_gb(process: psutil.Process) -> float:
    """High-water mark of resident memory; where the system does not keep one, what is resident now."""
    try:
        with open(f"/proc/{process.pid}/status") as f:
            return next((int(line.split()[1]) * 1024 / GB for line in f if line.startswith("VmHWM")), 0.0)
    except OSError:
        pass
    try:
        return process.memory_info().rss / GB
    except psutil.Error:
        return 0.0


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End the child and all it started, and collect it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin:
        child.stdin.close()
    child.wait()


def _read(result: Path, code: int, log: Path) -> tuple[str, str | None, dict[str, Any]]:
    """Status, reason and figures of a child that ended by itself."""
    answer = json.loads(result.read_text()) if result.exists() else {}
    if "figures" in answer:
        figures = answer["figures"]
        for name in OBJECTIVES:
            if not math.isfinite(figures[name]):
                return "infeasible", f"{name} is {figures[name]}", {}
        return "ok", None, figures
    if answer.get("error") == "CheckpointError":  # no setting can help: the end of the study, not of a trial
        raise CheckpointError(answer["reason"])
    if "error" in answer:
        status = {"KnobError": "infeasible", "MemoryError": "oom"}.get(answer["error"], "crash")
        return status, answer["reason"], {}
    last = _last_line(log)
    if code == -signal.SIGKILL:
        return "oom", "killed by the system (SIGKILL), as it does when memory runs out", {}
    if any(sign in last for sign in OUT_OF_MEMORY):
        return "oom", last, {}
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return "crash", f"{how}: {last}" if last else how, {}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
