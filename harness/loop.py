"""The loop of a study: propose, measure in a child, write the row, tell. Killed at any moment, it goes on where it was.

The order is the guarantee: a proposal is in the storage before its child starts, its row is on the disk before Optuna is
told, and what differs at the next start is put right from the rows. `running.json` counts the starts of a trial: one that
ended its search or the machine three times is not tried a fourth time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import psutil

from engine import CheckpointError, Knobs

from . import machine
from .child import Interrupted, Outcome, run_child
from .columns import NAMES
from .manifest import JUDGE, locked, settle, write_json
from .plan import Plan, check_writable
from .proposals import SAMPLER, Proposal, Proposals
from .rows import read_rows, set_damaged_aside, write_row

MAX_STARTS = 3
Row = dict[str, Any]


class Watcher(Protocol):
    """Who is told how the study goes: see `harness.display`."""

    def note(self, text: str) -> None: ...
    def begin(self, proposal: Proposal, rows: list[Row]) -> None: ...
    def end(self, row: Row, rows: list[Row]) -> None: ...


@dataclass
class Stop:
    """What the user asked for with Ctrl-C: `soon` after this trial, `now` at once."""

    soon: bool = False
    now: bool = False


def run_study(plan: Plan, watcher: Watcher, stop: Stop, warn: Callable[[str], None]) -> list[Row]:
    """Measure until the budget is spent or `stop` says so; returns the study's rows. Raises `HeadraceError`."""
    hours = plan.config["budget"]["hours"]
    deadline = time.monotonic() + 3600 * (float("inf") if hours is None else hours)
    check_writable(plan.folder)
    with locked(plan.folder):
        settle(plan)
        for line in set_damaged_aside(plan.folder):
            warn(line)
        rows = read_rows(plan.folder)
        _note_changes(plan, rows, watcher)
        proposals = Proposals(plan.folder, plan.space, plan.seed, plan.anchors, rows)
        jobs = _jobs(plan, proposals, rows, watcher)
        while len(rows) < plan.trials and not (stop.soon or stop.now) and time.monotonic() < deadline:
            proposal = next(jobs)
            watcher.begin(proposal, rows)
            try:
                row = _measure(plan, proposal, stop)
            except Interrupted:
                break
            write_row(plan.folder, row)
            rows.append(row)
            rows.sort(key=lambda r: r["trial"])
            proposals.tell(row, rows)
            _running(plan).unlink(missing_ok=True)
            watcher.end(row, rows)
    return rows


def _jobs(plan: Plan, proposals: Proposals, rows: list[Row], watcher: Watcher) -> Iterator[Proposal]:
    """The reference, what an earlier run left open, then new proposals without end."""
    if not any(row["origin"] == "reference" for row in rows):
        if plan.reference_gb <= plan.limit_gb:
            yield Proposal(0, "reference", {})
        else:
            watcher.note(
                f"no reference: with everything resident it would take {plan.reference_gb:.3g} GB, "
                f"above the limit of {plan.limit_gb:.3g} GB"
            )
    yield from proposals.pending(rows)
    while True:
        yield proposals.ask()


def _measure(plan: Plan, proposal: Proposal, stop: Stop) -> Row:
    """One trial's row: foreseen as impossible, given up after too many starts, or measured in a child."""
    started_at = datetime.now(UTC)
    reason, predicted = plan.forbidden(proposal.values)
    attempt = _starts(plan, proposal.trial) + 1
    if reason:
        outcome = Outcome("infeasible", reason)
    elif attempt > MAX_STARTS:
        outcome = Outcome(
            "crash", f"the search ended {MAX_STARTS} times while it ran; see logs/trial-{proposal.trial:06d}.log"
        )
    else:
        outcome = _run(plan, proposal, attempt, stop)
    return _row(plan, proposal, outcome, started_at, min(attempt, MAX_STARTS), predicted)


def _run(plan: Plan, proposal: Proposal, attempt: int, stop: Stop) -> Outcome:
    running = _running(plan)
    request = {
        "trial": proposal.trial,
        "attempt": attempt,
        "engine": plan.config["engine"]["module"],
        "checkpoint": str(plan.checkpoint),
        "judge": str(plan.folder / JUDGE),
        "knobs": proposal.values,
    }
    write_json(running, request)
    try:
        return run_child(
            running,
            plan.folder / "logs" / f"trial-{proposal.trial:06d}.log",
            timeout_s=plan.config["budget"]["trial_timeout_s"],
            limit_gb=plan.limit_gb,
            interrupted=lambda: stop.now,
            started=lambda pid: write_json(running.with_name("child.json"), _process(pid)),
        )
    except (Interrupted, CheckpointError):
        write_json(running, {**request, "attempt": attempt - 1})  # not the setting's fault: it keeps its starts
        raise


def _starts(plan: Plan, trial: int) -> int:
    """How often this trial was started without an end; a child that outlived its search is ended."""
    running = _running(plan)
    if not running.exists():
        return 0
    _end_orphan(running.with_name("child.json"))
    request = json.loads(running.read_text())
    return int(request["attempt"]) if request["trial"] == trial else 0


def _end_orphan(path: Path) -> None:
    try:
        child = json.loads(path.read_text())
        process = psutil.Process(child["pid"])
        if process.create_time() == child["created"]:
            process.kill()
            process.wait(10)
    except (OSError, psutil.Error):
        pass


def _process(pid: int) -> dict[str, Any]:
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def _running(plan: Plan) -> Path:
    return plan.folder / "running.json"


def _row(plan: Plan, proposal: Proposal, outcome: Outcome, started_at: datetime, attempt: int, predicted: float) -> Row:
    config = plan.config
    row: Row = dict.fromkeys(NAMES)
    row.update(Knobs.from_mapping(proposal.values).as_dict())
    row.update(outcome.figures)
    row.update(machine.identity())
    row.update(
        trial=proposal.trial,
        status=outcome.status,
        status_reason=outcome.reason,
        origin=proposal.origin,
        attempt=attempt,
        predicted_peak_gb=predicted,
        seen_peak_gb=outcome.seen_peak_gb,
        wall_s=outcome.wall_s,
        started_at=started_at,
        study=plan.name,
        seed=plan.seed,
        sampler=SAMPLER,
        space=plan.space_fingerprint,
        judge=plan.judge.fingerprint,
        quality=plan.judge_name,
        model=config["model"]["name"],
        architecture=plan.architecture,
        model_fingerprint=plan.model_fingerprint,
        device=config["device"]["name"],
        limit_gb=plan.limit_gb,
        engine=config["engine"]["module"],
    )
    return row


def _note_changes(plan: Plan, rows: list[Row], watcher: Watcher) -> None:
    """Things that do not forbid to go on, but that a reader of the rows wants to know."""
    now = machine.identity()
    before = {row["commit"] for row in rows} - {now["commit"], None}
    if before:
        watcher.note(f"earlier rows were measured with commit {', '.join(sorted(c[:9] for c in before))}")
    asked = plan.config["device"]["memory_gb"]
    if asked and asked > machine.memory_gb():
        watcher.note(f"device.memory_gb={asked:g} is more than this machine has ({machine.memory_gb():.1f} GB)")
