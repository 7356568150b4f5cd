"""Session: the loop of a study, which proposes a setting, measures it in a child, writes the row and informs the sampler.

A session may be killed at any moment, because of its order: a proposal is in the storage before its child starts, and its
row is on the disk before Optuna receives it. The next session restores the storage from the rows. Every decision (see
`harness.session.due`) follows from the rows, so a resumed search decides as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from harness import StudyStopped
from harness.analysis.counts import Progress, count, progress
from harness.analysis.estimates import noise
from harness.analysis.failures import streak
from harness.decisions.drift import check_drift
from harness.decisions.reuse import typical_s
from harness.forecast.study.text import started
from harness.machine.clocks import awake, continuous
from harness.machine.quiet import check_disk
from harness.propose.ask_tell import Proposal, Proposals, Search
from harness.results.history import History
from harness.results.rows import read_rows, read_tokens
from harness.results.writing import refresh, write_row, write_tokens
from harness.rounds.round import Round, rounds
from harness.run.job import Job, Row
from harness.run.runner import Runner
from harness.run.supervise import Interrupted
from harness.schema import GuardsConfig
from harness.study.study import Study

from . import outside
from .conclude import conclude
from .coordinator import Coordinator, Stop, pause
from .due import (
    confirmation,
    confirmation_budget,
    confirmation_due,
    has_reference,
    refuse_hopeless_space,
    rerun_due,
    round_end_s,
    trials_due,
)
from .notes import start_notes
from .state import job_fields, write_state

MOST_FAILURES = 10  # in a row, with one cause


class Watcher(Protocol):
    """Display of a session's progress: see `harness.show.live`."""

    def note(self, text: str) -> None: ...
    def begin(self, job: Job, rows: list[Row], progress: Progress) -> None: ...
    def end(self, row: Row, rows: list[Row], progress: Progress) -> None: ...


class Session:
    """One run of the search command on a study."""

    def __init__(
        self, study: Study, watcher: Watcher, stop: Stop, log: logging.Logger, note: Callable[[str], None],
        coordinator: Coordinator,
    ) -> None:  # fmt: skip
        self.study, self._watcher, self._stop, self._log, self._note = study, watcher, stop, log, note
        self._coordinator = coordinator
        self._guards = GuardsConfig(**study.config["guards"])
        self.history = History(read_rows(study.folder))
        self.complete = False  # whether the budget is spent
        self._confirming: int | None = None  # the round whose confirmation has begun
        self._first_sequence, self._begin = self.history.next_sequence, awake()
        self._last_end: float | None = None  # of a run of this session, on the continuous clock
        self._first_round = rounds(study)[-1].number
        self._sweeps = 0
        self._joined: Proposals | None = None
        self._runner = Runner(
            study, lambda: self._proposals.sampler, lambda: stop.now, note,
            lambda job, pid: log.info("trial %s runs in process %d", job.name, pid),
        )  # fmt: skip
        self.close = self._runner.close
        for (trial, run), tokens in read_tokens(study.folder).groupby(["trial", "run"]):
            self._runner.tokens[int(trial), int(run)] = tokens["wall_ms"].to_numpy()

    def search(self) -> None:
        """Run round after round until the budget is spent or the user stops."""
        while not (self.complete or self._stop.requested):
            one = rounds(self.study)[-1]
            self._joined = self._coordinator.reach(lambda one=one: self._proposals_of(one))  # type: ignore[misc]
            self._note(self._proposals.why)
            if one.number == self._first_round:
                for text in start_notes(self.study, self.history.own):
                    self._note(text)
                self.report("forecasting")
                self._runner.forecast = started(self.study, one.space, self.history.own, self._note, self._runner)
            self._explore(one)
            self._confirm(one)
            if self._stop.requested:
                return
            evidence = conclude(self.study, one, self.history)
            self._note(f"round {one.number}: {evidence}")
            self.complete = one.number >= self.study.rounds
        if self.complete:
            self._confirming = None

    def progress(self) -> Progress:
        """How far the study is."""
        share = self.study.config["confirm"]["share"]
        return progress(self.history.known, self.history.own, self.study.trials, share, self._confirming)

    def report(self, phase: str, job: Job | None = None, message: str = "") -> None:
        """Write the state that `harness.status` shows."""
        write_state(
            self.study.folder, phase=phase, since_s=awake(), started_s=self._begin, ended_s=self._last_end,
            first_sequence=self._first_sequence, **dataclasses.asdict(self.progress()),
            session=self._runner.clock.name, session_s=self._runner.clock.s(),
            hours=self.study.config["budget"]["hours"], message=message, **({} if job is None else job_fields(job)),
        )  # fmt: skip

    # The phases of a round.

    def _explore(self, one: Round) -> None:
        """Measure new settings, and the runs due between them, until the trials of this round are spent."""
        wanted = trials_due(self.study, one.number)
        jobs = self._jobs(one, wanted)
        while not self._over(one, confirmed=False):
            elsewhere = self._coordinator.take_over(self.history)
            if self._tried() + elsewhere < wanted:
                if (job := next(jobs)) is not None:
                    self._do(job, "exploring")
            elif elsewhere:  # wait for other machines, because they may vanish
                pause(1, self._stop)
            elif self._coordinator.reference_elsewhere and not has_reference(self.history.known):  # its machine vanished
                self._do(Job(Proposal(0, "reference", {}), round=one.number), "exploring")
            else:
                return

    def _jobs(self, one: Round, wanted: int) -> Iterator[Job | None]:
        """The reference, the proposals that an earlier session left open, then new proposals without end and the runs due
        between them. None if other machines took the last of the `wanted` trials."""
        if not has_reference(self.history.known) and self._coordinator.claim_reference(self.study.constraints):
            if self.study.reference_gb <= self.study.limit_gb:
                yield Job(Proposal(0, "reference", {}), round=one.number)
            else:
                self._note(
                    f"no reference: with everything resident it would take {self.study.reference_gb:.3g} GB, "
                    f"above the limit of {self.study.limit_gb:.3g} GB"
                )
        while True:
            claimed = self._coordinator.reach(lambda: self._coordinator.claim_open(self._proposals, self.history.own))
            for proposal in claimed:
                yield Job(proposal, round=one.number)
            if outside.call_due(self.study, self.history):
                outside.call(self.study, one, self.history, self._offer, lambda: self._stop.now, self._note)
            job = rerun_due(self.study, self.history, one.number)
            if job is None and (new := self._coordinator.reach(lambda: self._ask(wanted))) is not None:
                job = Job(new, round=one.number)
            yield job
            refuse_hopeless_space(self.history.own, self.history.known)

    def _confirm(self, one: Round) -> None:
        """Measure candidates of the front again until it is stable or the confirmation's runs are spent."""
        budget = confirmation_budget(self.study, self.history, one.number)
        while not self._over(one, confirmed=True):
            trials = confirmation_due(self.study, self.history, one.number, self._sweeps, budget)
            self._sweeps += 1
            if not trials:
                return
            for trial in trials:
                if self._over(one, confirmed=True):
                    return
                while (job := rerun_due(self.study, self.history, one.number)) and not self._stop.requested:
                    self._do(job, "confirming")
                self._do(confirmation(self.study, self.history, trial, one.number), "confirming")

    def _do(self, job: Job, phase: str) -> None:
        """Measure one job and record its row."""
        check_disk(self._guards, self.study.folder)
        self._confirming = job.round if phase == "confirming" else None
        self.report(phase, job)
        self._watcher.begin(job, self.history.known, self.progress())
        with self._coordinator.beating(job), contextlib.suppress(Interrupted):
            self._record(job, *self._runner.run(job, self.history))

    def _record(self, job: Job, row: Row, tokens: Sequence[float]) -> None:
        """Write a row, then inform the storage and the display. Raises `StudyStopped` after too many equal failures."""
        folder, known = self.study.folder, self.history.known
        if row["origin"] == "sentinel":
            deviation = self.history.derived(noise).loc["decode_tok_s", "sd"]
            check_drift(row, known, self.study.config["sentinel"]["drift"], deviation)
        if tokens:
            write_tokens(folder, row["row_id"], row["trial"], row["run"], tokens)
            self._runner.tokens[row["trial"], row["run"]] = tokens
        write_row(folder, row)
        self.history.add(row)
        self._last_end = continuous()
        self._coordinator.reach(lambda: self._proposals.tell(row, self.history.known))
        if row["origin"] == "reference":
            self._coordinator.tell_reference(row)
        self._runner.in_flight.clear()
        refresh(folder)
        self._log.info("trial %s %s %s %s", job.name, row["origin"], row["status"], row["status_reason"] or "")
        self._watcher.end(row, self.history.known, self.progress())
        failures, why = streak(self.history.own, self._first_sequence)
        if failures >= MOST_FAILURES:
            raise StudyStopped(
                f"{failures} runs failed in a row with one cause ({why}); fix it, then run the same command again"
            )

    # Proposals.

    @property
    def _proposals(self) -> Proposals:
        assert self._joined is not None
        return self._joined

    def _proposals_of(self, one: Round) -> Proposals:
        """Optuna's study of a round, restored from the rows."""
        study, config = self.study, self.study.config["sampler"]
        search = Search(
            study.objectives, study.constraints, config["name"], config["options"], config["random_every"], study.seed,
            study.limit_gb,
        )  # fmt: skip
        name = study.name if one.number == 1 else f"{study.name} round {one.number}"
        anchors = study.anchors if one.number == 1 else []
        coordinator = self._coordinator
        with coordinator.lock():
            proposals = Proposals(
                coordinator.storage, name, search, one.space, anchors, self.history.own, dropped=one.dropped,
                owner=coordinator.owner,
            )  # fmt: skip
        coordinator.join(proposals.study)
        return proposals

    def _ask(self, wanted: int) -> Proposal | None:
        """A new setting; None if other machines took the last of the `wanted` trials."""
        with self._coordinator.lock():
            if self._tried() + self._coordinator.update(self.history) >= wanted:
                return None
            before = self._proposals.sampler
            proposal = self._proposals.ask(typical_s(self.history.known))
            if self._proposals.sampler != before:
                self._note(self._proposals.why)
            return proposal

    def _offer(self, values: dict, proposer: str, note: str) -> bool:
        return self._coordinator.reach(lambda: self._proposals.offer(values, proposer, note))

    # Budgets.

    def _tried(self) -> int:
        return count(self.history.known).trials

    def _over(self, one: Round, *, confirmed: bool) -> bool:
        """Whether the user stops, or the round's share of `budget.hours`, time awake, is spent; else exploration's share."""
        place, rounds_here = one.number - self._first_round, self.study.rounds - self._first_round + 1
        end = round_end_s(self.study.config, rounds_here, place, confirmed=confirmed)
        return self._stop.requested or (end is not None and awake() - self._begin >= end)
