"""Coordinator: what a session does because other machines may share its study.

`Coordinator` is that of a study on one machine, where nothing is shared: it waits for nothing, claims every run and knows no
other rows. `SharedCoordinator` goes through the database of the study (see `harness.propose.shared`).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import optuna

from harness import StudyStopped
from harness.propose.ask_tell import Proposal, Proposals
from harness.propose.shared import Shared
from harness.propose.storage import UNREACHABLE, reason, shared_lock
from harness.results.history import History
from harness.run.job import Job, Row
from harness.study.constraints import Constraint

PATIENCE_S = 600  # for a shared database that cannot be reached
RETRY_S = 5
T = TypeVar("T")


@dataclass
class Stop:
    """The user's wish to stop: `soon` after the current run, `now` at once."""

    soon: bool = False
    now: bool = False

    @property
    def requested(self) -> bool:
        return self.soon or self.now


class Coordinator:
    """The coordinator of a study on one machine."""

    owner = ""
    reference_elsewhere = False  # whether another machine measures the reference

    def __init__(self, storage: optuna.storages.RDBStorage) -> None:
        self.storage = storage
        self._recheck = True

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of the study."""
        return contextlib.nullcontext()

    def join(self, study: optuna.Study) -> None:
        """Begin a round, which has an Optuna study of its own."""

    def reach(self, action: Callable[[], T]) -> T:
        """The result of an action on the storage."""
        return action()

    def take_over(self, history: History) -> int:
        """Requeue the trials of machines that vanished, update the rows of others, and return how many trials run there."""
        return 0

    def update(self, history: History) -> int:
        """Update the rows of other machines, and return how many trials run there."""
        return 0

    def claim_open(self, proposals: Proposals, rows: Sequence[Row]) -> list[Proposal]:
        """The proposals that an interrupted session left without a row. Checked once, and again after an outage."""
        if not self._recheck:
            return []
        self._recheck = False
        with self.lock():
            found = proposals.pending(rows)
            for proposal in found:
                self._beat(proposal.trial)
            return found

    def claim_reference(self, constraints: Sequence[Constraint]) -> bool:
        """Whether this machine measures the reference."""
        return True

    def beating(self, job: Job) -> contextlib.AbstractContextManager[None]:
        """Signal to other machines that a job runs."""
        return contextlib.nullcontext()

    def tell_reference(self, row: Row) -> None:
        """Give the reference's row to other machines."""

    def _beat(self, trial: int) -> None:
        """Signal once that a trial is claimed."""


class SharedCoordinator(Coordinator):
    """The coordinator of a study that several machines share; `owner` names this results folder among them."""

    def __init__(
        self,
        storage: optuna.storages.RDBStorage,
        study_name: str,
        owner: str,
        stale_s: float,
        stop: Stop,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(storage)
        self.owner = owner
        self._study_name, self._stale_s, self._stop, self._note = study_name, stale_s, stop, note
        self._shared: Shared | None = None

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return shared_lock(self.storage, self._study_name)

    def join(self, study: optuna.Study) -> None:
        self._shared = Shared(study, self.storage, self.owner, self._stale_s)

    def reach(self, action: Callable[[], T]) -> T:
        """Repeat the action while the database cannot be reached. Raises `StudyStopped` after `PATIENCE_S`."""
        for attempt in itertools.count():
            try:
                return action()
            except UNREACHABLE as e:
                self._recheck = True
                problem = f"the storage cannot be reached ({reason(e)})"
                if attempt >= PATIENCE_S / RETRY_S or self._stop.requested:
                    raise StudyStopped(f"{problem}; all rows are saved: run the same command again") from e
                if not attempt:
                    self._note(f"{problem}; retrying for {PATIENCE_S} s")
                pause(RETRY_S, self._stop)
        raise AssertionError("unreachable")

    def take_over(self, history: History) -> int:
        if count := self.reach(self._joined.take_over):
            self._note(f"{count} trials of a machine that vanished are queued again")
        return self.reach(lambda: self.update(history))

    def update(self, history: History) -> int:
        others, running = self._joined.look()
        history.set_others(others)
        return running

    def claim_reference(self, constraints: Sequence[Constraint]) -> bool:
        """The first machine that claims the reference measures it. With a constraint relative to the reference, each
        machine measures its own before it continues."""
        if any(c.relative for c in constraints):
            return True
        self.reference_elsewhere = not self.reach(self._joined.claim_reference)
        return not self.reference_elsewhere

    def beating(self, job: Job) -> contextlib.AbstractContextManager[None]:
        return self._joined.beating(job.proposal.trial) if job.is_new else contextlib.nullcontext()

    def tell_reference(self, row: Row) -> None:
        self.reach(lambda: self._joined.tell_reference(row))

    def _beat(self, trial: int) -> None:
        self._joined.beat(trial)

    @property
    def _joined(self) -> Shared:
        assert self._shared is not None
        return self._shared


def pause(seconds: float, stop: Stop) -> None:
    """Sleep, but not beyond the user's wish to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.requested:
        time.sleep(0.1)
