"""Shared study: several machines search one Optuna study in a database.

Each machine proposes and reports its trials in the database and keeps its own rows in its own results folder. A reported
trial carries its row, so all machines know all rows. During a trial its machine writes heartbeats. If they stop for
`stale_s`, another machine ends the trial and measures its setting again. A heartbeat is a text that no other has, and a
machine times with its own clock how long it stays the same, because clocks of several machines differ. Time without a
connection to the database does not count.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from engine.system.strict_json import from_json, to_json
from harness import ConfigError
from harness.machine.identity import memory_gb
from harness.results.columns import SCHEMA_VERSION, row_from_json, row_to_json
from harness.results.files import write_text
from harness.study.manifest import changes
from harness.study.study import Study

from .knob_storage import FORMAT, VALUES
from .storage import shared_lock

Row = dict[str, Any]


def owner_of(folder: Path) -> str:
    """The owner name of a results folder in a shared study: random, written once to `owner`."""
    path = folder / "owner"
    if not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text().strip()


def identity_of(study: Study) -> dict[str, Any]:
    """The identity that all machines of a shared study must have."""
    own = study.identity()
    kind = {**own["machine"], "memory_gb": round(memory_gb()), "limit_gb": round(study.limit_gb)}
    return from_json(to_json({**own, "machine": kind, "schema_version": SCHEMA_VERSION, FORMAT: VALUES}))


def settle_shared(storage: optuna.storages.RDBStorage, study: Study) -> None:
    """Set the identity of a new shared study, or compare it with an old one. Raises `ConfigError` if they differ."""
    identity = identity_of(study)
    with shared_lock(storage, study.name):
        shared = optuna.create_study(
            study_name=study.name, storage=storage, directions=[*study.objectives.values()], load_if_exists=True
        )
        known = shared.user_attrs.get("identity")
        if known is None:
            shared.set_user_attr("identity", identity)
            return
    if FORMAT not in known:  # of an earlier version, which machines of that version must not join any more
        known = {**known, FORMAT: VALUES}
        shared.set_user_attr("identity", known)
    if found := changes(known, identity):
        raise ConfigError(
            f"the shared study {study.name} differs from this one: {'; '.join(found)}; undo that, or start another "
            "with study.name=OTHER"
        )


class Shared:
    """The other machines' trials of a study. owner: the name of this machine's results folder."""

    def __init__(self, study: optuna.Study, storage: optuna.storages.RDBStorage, owner: str, stale_s: float) -> None:
        self._study, self._storage, self._owner, self._stale_s = study, storage, owner, stale_s
        self._beats: dict[int, tuple[Any, float]] = {}  # Optuna's number -> last heartbeat, and when it was first seen
        self._rows: dict[int, Row] = {}  # by Optuna's number; -1 is the reference
        self._session, self._count = uuid.uuid4().hex, itertools.count()

    @contextlib.contextmanager
    def beating(self, trial: int) -> Iterator[None]:
        """Write heartbeats of this machine's trial from a thread, four per `stale_s`."""
        end = threading.Event()

        def beat() -> None:
            while True:
                try:
                    if not self.beat(trial):
                        return
                except Exception:  # the database is away, so the other machines' heartbeats are unknown
                    self._beats.clear()
                if end.wait(self._stale_s / 4):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(5)

    def beat(self, trial: int) -> bool:
        """Write one heartbeat; False if the trial is not running, or belongs to another machine."""
        own = (t for t in self._running() if t.user_attrs.get("owner") == self._owner)
        found = next((t for t in own if t.user_attrs.get("trial") == trial), None)
        if found is None:
            return False
        with contextlib.suppress(UpdateFinishedTrialError):
            self._study._storage.set_trial_user_attr(found._trial_id, "beat", f"{self._session}-{next(self._count)}")
            return True
        return False

    def look(self) -> tuple[list[Row], int]:
        """The other machines' reported rows, and the number of their running trials."""
        trials = self._trials()
        for t in trials:
            reported = t.state == TrialState.COMPLETE and "row" in t.user_attrs
            if reported and t.number not in self._rows and t.user_attrs["owner"] != self._owner:
                self._rows[t.number] = row_from_json(t.user_attrs["row"])
        if -1 not in self._rows:
            reference = self._study.user_attrs.get("reference", {})
            if "row" in reference and reference["owner"] != self._owner:
                self._rows[-1] = row_from_json(reference["row"])
        running = sum(t.state == TrialState.RUNNING and t.user_attrs.get("owner") != self._owner for t in trials)
        return [*self._rows.values()], running

    def claim_reference(self) -> bool:
        """Claim the reference for this machine; False if another machine has claimed it before."""
        with shared_lock(self._storage, self._study.study_name):
            claim = self._study.user_attrs.get("reference")
            if claim is None:
                self._study.set_user_attr("reference", {"owner": self._owner})
            return claim is None or claim["owner"] == self._owner

    def tell_reference(self, row: Row) -> None:
        """Report the reference's row to the other machines."""
        self._study.set_user_attr("reference", {"owner": self._owner, "row": row_to_json(row)})

    def running(self) -> int:
        """The number of trials that run on other machines."""
        return sum(t.user_attrs.get("owner") != self._owner for t in self._running())

    def take_over(self) -> int:
        """End the trials without a heartbeat for `stale_s` and enqueue their settings again; returns their number."""
        if not self._stale():
            return 0
        with shared_lock(self._storage, self._study.study_name):
            return sum(self._enqueue_again(t) for t in self._stale())

    def _stale(self) -> list[FrozenTrial]:
        found, now = [], time.monotonic()
        for t in self._running():
            if t.user_attrs.get("owner") == self._owner:
                continue
            beat = t.user_attrs.get("beat")
            known, since = self._beats.get(t.number, (None, now))
            if t.number not in self._beats or known != beat:
                self._beats[t.number] = (beat, now)
            elif now - since > self._stale_s:
                found.append(t)
        return found

    def _enqueue_again(self, t: FrozenTrial) -> bool:
        """Enqueue the setting, then end the trial; False if its machine has come back.

        In this order no setting is lost if this machine is killed in between. A setting enqueued twice is measured once.
        """
        names = [n for n in ("origin", "proposer", "note", "seed") if n in t.user_attrs]
        attributes: dict[str, Any] = {n: t.user_attrs[n] for n in names}
        accepted = "trial" in t.user_attrs
        params = t.params if accepted else t.system_attrs.get("fixed_params")
        if params:
            starts = t.user_attrs.get("starts", 0) + accepted
            self._study.enqueue_trial(params, user_attrs={**attributes, "starts": starts, "vanished": t.number})
        with contextlib.suppress(UpdateFinishedTrialError):
            self._study._storage.set_trial_state_values(t._trial_id, TrialState.FAIL)
            return True
        return False

    def _running(self) -> list[FrozenTrial]:
        return [t for t in self._trials() if t.state == TrialState.RUNNING]

    def _trials(self) -> Sequence[FrozenTrial]:
        try:
            return self._study.get_trials(deepcopy=False)
        except Exception:
            self._beats.clear()
            raise
