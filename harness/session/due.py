"""Schedule of a session: which run is due, as pure functions of the rows, so that a resumed search decides as an
uninterrupted one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import StudyStopped
from harness.analysis.counts import confirm_budget, confirmations, count
from harness.analysis.estimates import suspects
from harness.analysis.runs.timeline import order
from harness.decisions.confirmation import next_sweep
from harness.decisions.drift import drifted, due, sentinel_trial
from harness.decisions.recommend import only_restored, recommended
from harness.decisions.reuse import settings_of
from harness.propose.ask_tell import Proposal
from harness.results.columns import NOT_RUN
from harness.results.history import History
from harness.run.job import Job, Row
from harness.study.study import Study

MOST_DRAWS = 20  # settings that cannot run, for each one that ran
MOST_AGAIN = 0.5  # repeats of suspect runs, as a share of the budget's trials
MOST_AGAIN_EACH = 2


def trials_due(study: Study, round_number: int) -> int:
    """Trials of the budget up to the end of a round."""
    return study.trials * min(round_number, study.rounds) // study.rounds


def has_reference(rows: Iterable[Row]) -> bool:
    """Whether the reference was measured, with any result."""
    return any(row["origin"] == "reference" for row in rows)


def rerun_due(study: Study, history: History, round_number: int) -> Job | None:
    """The run that is due before a new setting: a repeat, a control run, or a repeat of a suspect run; None if none is."""
    rows, config = history.own, study.config
    newest = max((r for r in rows if r["run"] == 0), key=order, default=None)
    if newest is not None and newest["status"] == "ok":
        repeats = sum(r["trial"] == newest["trial"] and r["origin"] == "repeat" for r in rows)
        if repeats < config["protocol"]["repeats"] - 1:
            return rerun(history.known, newest["trial"], "repeat", round_number)
    control = sentinel_trial(history.known)
    if control is not None and due(rows, control, config["sentinel"]["every"]):
        return rerun(history.known, control, "sentinel", round_number)
    trial = next(iter(suspects_due(history, study.trials)), None)
    return None if trial is None else rerun(history.known, trial, "again", round_number)


def suspects_due(history: History, trials: int) -> list[int]:
    """The trials whose suspect runs are to be repeated: none while the machine is still drifted, and at most `MOST_AGAIN`
    runs for a budget of `trials`."""
    rows = history.own
    doubted = any(r["suspect"] is not None or r["drift_since"] is not None for r in rows)
    if not doubted or drifted(rows):
        return []
    again = [r["trial"] for r in rows if r["origin"] == "again"]
    if len(again) >= MOST_AGAIN * trials:
        return []
    return [t for t in suspects(history.own_table) if again.count(t) < MOST_AGAIN_EACH]


def confirmation_due(study: Study, history: History, round_number: int, sweep: int, budget: int) -> list[int]:
    """The trials of the next sweep of a round's confirmation; empty once the front is stable or `budget` runs are spent.
    Each machine confirms the trials that it measured."""
    return next_sweep(
        history.table, **study.rules, **study.config["recommend"], spent=confirmations(history.own, round_number),
        budget=budget, sweep=sweep, own={r["trial"] for r in history.own if r["run"] == 0},
    )  # fmt: skip


def confirmation(study: Study, history: History, trial: int, round_number: int) -> Job:
    """The next confirmation run of a trial. That of a recommended setting computes its prompts if none did so before."""
    job = rerun(history.known, trial, "confirm", round_number)
    if trial not in only_restored(history.table):
        return job
    chosen = {c.trial for c in recommended(history.table, **study.rules, **study.config["recommend"])}
    return dataclasses.replace(job, real_prefill=trial in chosen)


def confirmation_budget(study: Study, history: History, round_number: int) -> int:
    """Runs that a round's confirmation may spend on this machine."""
    return confirm_budget(history.own, round_number, study.config["confirm"]["share"])


def rerun(rows: Sequence[Row], trial: int, origin: str, round_number: int) -> Job:
    """The next run of a trial that was measured before."""
    runs = [r for r in rows if r["trial"] == trial]
    first = runs[0]
    proposal = Proposal(trial, origin, settings_of(first), first["proposer"] or "", "", first["sampler_seed"])
    return Job(proposal, 1 + max(r["run"] for r in runs), origin, round_number)


def round_end_s(config: Mapping[str, Any], rounds: int, place: int, *, confirmed: bool) -> float | None:
    """Seconds awake from the start of the command until a round's time is over, or its exploration's unless `confirmed`.

    `budget.hours` is shared equally by the `rounds` of this command; `place` counts them from 0. None without a limit.
    """
    hours, share = config["budget"]["hours"], config["confirm"]["share"]
    if hours is None:
        return None
    each = 3600 * float(hours) / max(1, rounds)
    return each * place + each * (1 if confirmed else 1 / (1 + share))


def refuse_hopeless_space(own: Sequence[Row], known: Sequence[Row]) -> None:
    """Raises `StudyStopped` if nearly all settings that this machine drew cannot run."""
    idle = sum(r["run"] == 0 and r["status"] in NOT_RUN for r in own)
    ran = count(known).trials
    if idle > MOST_DRAWS * max(10, ran):
        last = next(r for r in reversed(own) if r["status"] in NOT_RUN)
        raise StudyStopped(
            f"{idle} proposed settings cannot run, and {ran} ran (the last reason: {last['status_reason']}); narrow the "
            "search space, or allow more memory"
        )
