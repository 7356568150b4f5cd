"""A study that several machines share, through Optuna's own database storage.

Each machine asks for trials and tells them there, and keeps the rows of its own in its own results folder; with what it
tells goes the row, so that the others know it too. While a trial runs its machine beats: a machine that vanished stops
beating, and its trial is ended and tried again by another. Beats are compared with each other and never with a clock, for
the clocks of several machines differ; time in which the database was away does not count.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from harness import ConfigError
from harness.results.columns import SCHEMA_VERSION, row_from_json, row_to_json
from harness.results.files import write_text
from harness.study.manifest import changes
from harness.study.study import Study

from .storage import alone

Row = dict[str, Any]


def owner_of(folder: Path) -> str:
    """The name under which this results folder takes trials: made once, and kept."""
    path = folder / "owner"
    if not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text().strip()


def identity_of(study: Study) -> dict[str, Any]:
    """What machines that share a study have in common."""
    from harness.machine import identity as machine

    own = study.identity()
    kind = {**own["machine"], "memory_gb": round(machine.memory_gb()), "limit_gb": round(study.limit_gb)}
    return json.loads(json.dumps({**own, "machine": kind, "schema_version": SCHEMA_VERSION}))


def settle_shared(storage: optuna.storages.RDBStorage, study: Study) -> None:
    """Give a new study its identity, or compare. Raises `ConfigError` for a study of another kind of machine, model ..."""
    identity = identity_of(study)
    with alone(storage, study.name):
        shared = optuna.create_study(
            study_name=study.name, storage=storage, directions=[*study.objectives.values()], load_if_exists=True
        )
        known = shared.user_attrs.get("identity")
        if known is None:
            shared.set_user_attr("identity", identity)
            return
    if found := changes(known, identity):
        raise ConfigError(
            f"the shared study {study.name} is not this one: {'; '.join(found)}; undo that, or start another "
            "with study.name=OTHER"
        )


class Shared:
    """What the other machines do with a study. `owner` is ours."""

    def __init__(self, study: optuna.Study, storage: optuna.storages.RDBStorage, owner: str, stale_s: float) -> None:
        self._study, self._storage, self._owner, self._stale_s = study, storage, owner, stale_s
        self._beats: dict[int, tuple[Any, float]] = {}  # Optuna's number -> beat, and when it was seen first
        self._rows: dict[int, Row] = {}  # by Optuna's number

    @contextlib.contextmanager
    def beating(self, trial: int) -> Iterator[None]:
        """Show that our trial is alive, from a thread of its own."""
        end = threading.Event()

        def beat() -> None:
            while True:
                try:
                    if not self.beat(trial):
                        return
                except Exception:  # the database is away: how long others have been silent is not known
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
        """Beat once; False if the trial does not run, or is not ours (any more)."""
        ours = (t for t in self._running() if t.user_attrs.get("owner") == self._owner)
        found = next((t for t in ours if t.user_attrs.get("trial") == trial), None)
        if found is None:
            return False
        with contextlib.suppress(UpdateFinishedTrialError):
            self._study._storage.set_trial_user_attr(found._trial_id, "beat", time.time())
            return True
        return False

    def look(self) -> tuple[list[Row], int]:
        """The other machines' rows, as far as they were told, and how many trials run there."""
        trials = self._trials()
        for t in trials:
            told = t.state == TrialState.COMPLETE and "row" in t.user_attrs
            if told and t.number not in self._rows and t.user_attrs["owner"] != self._owner:
                self._rows[t.number] = row_from_json(t.user_attrs["row"])
        if -1 not in self._rows:
            told = self._study.user_attrs.get("reference", {})
            if "row" in told and told["owner"] != self._owner:
                self._rows[-1] = row_from_json(told["row"])
        running = sum(t.state == TrialState.RUNNING and t.user_attrs.get("owner") != self._owner for t in trials)
        return [*self._rows.values()], running

    def claim_reference(self) -> bool:
        """Whether the reference is ours to measure: it is that of the first machine which asks."""
        with alone(self._storage, self._study.study_name):
            told = self._study.user_attrs.get("reference")
            if told is None:
                self._study.set_user_attr("reference", {"owner": self._owner})
            return told is None or told["owner"] == self._owner

    def tell_reference(self, row: Row) -> None:
        """Let the others know the reference's row."""
        self._study.set_user_attr("reference", {"owner": self._owner, "row": row_to_json(row)})

    def running(self) -> int:
        """How many trials run on other machines, as far as is known."""
        return sum(t.user_attrs.get("owner") != self._owner for t in self._running())

    def take_over(self) -> int:
        """End the trials whose machine has not beaten for `stale_s`, and put their settings up again; returns how many."""
        if not self._stale():
            return 0
        with alone(self._storage, self._study.study_name):
            return sum(self._put_up_again(t) for t in self._stale())

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

    def _put_up_again(self, t: FrozenTrial) -> bool:
        """Whether it was ended. The setting is put up before, so that none is lost if this machine vanishes in between:
        one that was put up twice is known, and is not measured twice."""
        kept: dict[str, Any] = {k: t.user_attrs[k] for k in ("origin", "proposer", "note", "seed") if k in t.user_attrs}
        accepted = "trial" in t.user_attrs
        params = t.params if accepted else t.system_attrs.get("fixed_params")
        if params:
            starts = t.user_attrs.get("starts", 0) + accepted
            self._study.enqueue_trial(params, user_attrs={**kept, "starts": starts, "vanished": t.number})
        with contextlib.suppress(UpdateFinishedTrialError):  # its machine came back
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
