"""Supervisor: watch one child process, limit its time and memory, and classify its end.

The child leads its own process group, so that Ctrl-C at the terminal reaches only the search, and a child that exceeds a
limit is killed with its descendants. Supervision costs two small reads of /proc every tenth of a second. Limits of time are
in time awake: `harness.machine.clocks` tells it from sleep, and no clock of a file or of another process is compared.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from engine import CheckpointError
from engine.errors import first_line
from engine.knobs import GB
from engine.model.environment.kernel_cache import kernels
from engine.system.strict_json import from_json, not_finite
from harness import ResultsError
from harness.machine.clocks import Sign, Stopwatch, awake
from harness.machine.processes import end_group

from .children import Children

POLL_S = 0.1
TIMED = "timed"  # file beside the request: the run's timing has ended
TAIL_LINES = 12
OUT_OF_MEMORY = ("[malloc] Unable to allocate", "Insufficient Memory", "MemoryError", "out of memory", "bad_alloc")


class Interrupted(Exception):
    """The user stopped the search at once; the run was killed and has no row."""


@dataclass(frozen=True)
class Outcome:
    """End of a run: its status with the reason, figures if ok or stopped, and what the supervisor observed."""

    status: str
    reason: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    token_ms: Sequence[float] = ()
    seen_peak_gb: float | None = None
    wall_s: float = 0.0  # awake
    slept_s: float = 0.0  # sleep of the machine or standstill of the search, besides wall_s
    score_s: float | None = None  # part of wall_s spent on quality alone
    log_tail: str | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)  # columns: seconds of wall_s by part
    scoring_stopped: Mapping[str, Any] | None = None  # why and where scoring ended early


def run_child(
    children: Children,
    log: Path,
    *,
    timeout_s: float,
    hang_s: float | None,
    limit_gb: float,
    needed: Sequence[str],
    interrupted: Callable[[], bool],
    started: Callable[[int], None],
    tick: Callable[[], None] = lambda: None,
    untimed: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the request of `children` in a child and classify its end; let the next children wait as soon as timing has ended.

    The time limit begins anew if MLX on CUDA has compiled kernels meanwhile, which it does at first use, once on a machine.
    The `needed` figures must be finite. `started` receives the process id; `tick` is called about ten times a second,
    `untimed` once if the child goes on after its timing. Raises `Interrupted` when `interrupted()`, `CheckpointError` if the
    engine cannot open the checkpoint at all, and `ResultsError` if the disk is full.
    """
    beat, timed = (children.request.with_name(name) for name in ("beat", TIMED))
    for file in (children.result, beat, timed):
        file.unlink(missing_ok=True)
    knobs = from_json(children.request.read_text()).get("knobs") or {}
    watch, sign, begin = Stopwatch(), Sign(beat), awake()
    peak, verdict, ready = 0.0, None, False
    compiled, since_s = kernels(), 0.0
    child = children.begin(log, knobs)
    try:
        started(child.pid)
        process = psutil.Process(child.pid)
        for turn in itertools.count():
            if child.poll() is not None or verdict:
                break
            if interrupted():
                raise Interrupted
            peak = max(peak, _peak_gb(process, with_children=turn % 10 == 9))
            took = watch.look()
            silent = sign.silent_s(took)
            if took - since_s > timeout_s and (now := kernels()) > compiled:
                compiled, since_s = now, took
            if peak > limit_gb:
                verdict = "oom", f"{peak:.3g} GB are above the limit of {limit_gb:.3g} GB"
            elif took - since_s > timeout_s:
                verdict = "timeout", f"no result within {timeout_s:g} s (budget.trial_timeout_s)"
            elif hang_s is not None and silent > hang_s:
                verdict = "hang", f"no sign of life for {hang_s:g} s (budget.hang_s)"
            else:
                tick()
                if ready:
                    children.prepare_more()
                elif timed.exists():  # the rest is scoring
                    ready = True
                    children.prepare()
                    untimed()
                time.sleep(POLL_S)
    finally:
        end_group(child.pid)
        if child.stdin:
            with contextlib.suppress(OSError):  # the child ended before it read its line
                child.stdin.close()
        child.wait()
    wall, slept, end = watch.look(), watch.lost_s, awake()
    children.prepare()
    if verdict:
        return Outcome(*verdict, seen_peak_gb=peak, wall_s=wall, slept_s=slept, log_tail=_tail(log))
    answer = _answer(children.result)
    status, reason = fate(answer, child.returncode, log, needed)
    figures = answer.get("figures", {}) if status in ("ok", "stopped") else {}
    return Outcome(
        status,
        reason,
        figures,
        answer.get("token_ms") or (),
        max(peak, figures.get("peak_memory_gb") or 0.0) or None,
        wall,
        slept,
        answer.get("score_s"),
        None if status in ("ok", "stopped") else _tail(log),
        parts_of(answer, begin, end),
        answer.get("scoring_stopped"),
    )


def parts_of(answer: Mapping[str, Any], begin: float, end: float) -> dict[str, float | None]:
    """Seconds of starting, preparing, loading and ending by a child's answer. `begin`, `end`: of the run, by `awake`."""
    began, ended = answer.get("began_s"), answer.get("ended_s")
    return {
        "start_s": None if began is None else max(0.0, began - begin),
        "prepare_s": answer.get("prepare_s"),
        "load_s": answer.get("load_s"),
        "end_s": None if ended is None else max(0.0, end - ended),
    }


def _answer(result: Path) -> dict[str, Any]:
    """The result that the child wrote; empty if it wrote none."""
    try:
        found: dict[str, Any] = from_json(result.read_text())
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        return {"error": "ResultsError", "reason": f"{result.name} cannot be read ({first_line(e)})"}


def _peak_gb(process: psutil.Process, *, with_children: bool) -> float:
    """Peak resident memory of the child; the current one where the system keeps no peak. `with_children` adds its
    descendants, which costs more."""
    try:
        others = process.children(recursive=True) if with_children else []
        below = sum(child.memory_info().rss for child in others) / GB
        try:
            with open(f"/proc/{process.pid}/status") as f:
                return below + next((int(line.split()[1]) * 1024 / GB for line in f if line.startswith("VmHWM")), 0.0)
        except OSError:
            return below + process.memory_info().rss / GB
    except psutil.Error:
        return 0.0


def fate(answer: Mapping[str, Any], code: int, log: Path, needed: Sequence[str]) -> tuple[str, str | None]:
    """Status and reason of a child that ended without the supervisor."""
    if "figures" in answer:
        figures, early = answer["figures"], bool(answer.get("ended_early"))
        scored = not answer.get("scoring_stopped")
        for name in [n for n in needed if scored or n != "perplexity"] if not early else ["decode_tok_s"]:
            if figures.get(name) is None:
                return "crash", f"{name} is missing"
        if found := not_finite({"figures": figures, "token_ms": answer.get("token_ms")}):
            return "crash", f"{found[0].removeprefix('figures.')} is {found[1]}"
        return ("stopped", "too slow to enter the front") if early else ("ok", None)
    if answer.get("error") == "CheckpointError":  # no setting can help, so it ends the study
        raise CheckpointError(answer["reason"])
    # As below, the setting is not the cause.
    if answer.get("error") == "OSError" and os.strerror(errno.ENOSPC) in answer["reason"]:
        raise ResultsError(f"{answer['reason']}, then run the same command again")
    if "error" in answer:
        return {"KnobError": "infeasible", "MemoryError": "oom"}.get(answer["error"], "crash"), answer["reason"]
    last = _last_line(log)
    if os.strerror(errno.ENOSPC) in last:  # the setting is not the cause
        raise ResultsError(f"{log}: {last}; make room, then run the same command again")
    if code == -signal.SIGKILL:
        return "oom", "killed by the system (SIGKILL), usually because memory ran out"
    if any(sign in last for sign in OUT_OF_MEMORY):
        return "oom", last
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return "crash", f"{how}: {last}" if last else how


def _last_line(log: Path) -> str:
    return _tail(log).rpartition("\n")[2].strip()[:300]


def _tail(log: Path) -> str:
    """The last lines of a log."""
    with open(log, "rb") as f:
        f.seek(max(0, os.fstat(f.fileno()).st_size - 8000))
        lines = f.read().decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-TAIL_LINES:])
