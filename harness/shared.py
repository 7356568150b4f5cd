"""A study that several machines share, through Optuna's own database storage.

Each machine asks for trials and tells them there, and keeps the rows of its own in its own results folder; with what it
tells goes the row, so that the others know it too. While a trial runs its machine beats: a machine that vanished stops
beating, and its trial is ended and tried again by another. Beats are compared with each other and never with a clock, for
the clocks of several machines differ.
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
from optuna.trial import TrialState

from . import ConfigError
from .columns import unpacked
from .manifest import changes, write_text
from .plan import Plan

Row = dict[str, Any]


def owner_of(folder: Path) -> str:
    """The name under which this results folder takes trials: made once, and kept."""
    path = folder / "owner"
    if not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text().strip()


def identity_of(plan: Plan) -> dict[str, Any]:
    """What machines that share a study have in common."""
    from . import machine

    own = plan.identity()
    kind = {**own["machine"], "memory_gb": round(machine.memory_gb()), "device": plan.config["device"]["name"]}
    return json.loads(json.dumps({**own, "machine": kind}))


def settle_shared(study: optuna.Study, plan: Plan) -> None:
    """Give a new study its identity, or compare. Raises `ConfigError` for a study of another kind of machine, model ..."""
    identity = identity_of(plan)
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", identity)
        known = study.user_attrs["identity"]
    if found := changes(known, identity):
        raise ConfigError(
            f"the shared study {plan.name} is another: {'; '.join(found)}; undo that, or start another with study.name=OTHER"
        )


class Shared:
    """What the other machines do with a study. `owner` is ours."""

    def __init__(self, study: optuna.Study, owner: str, stale_s: float) -> None:
        self._study, self._owner, self._stale_s = study, owner, stale_s
        self._beats: dict[int, tuple[Any, float]] = {}  # Optuna's number -> beat, and when it was seen first

    @contextlib.contextmanager
    def beating(self, trial: int) -> Iterator[None]:
        """Show that our trial is alive, from a thread of its own."""
        number = next((t.number for t in self._trials() if t.user_attrs.get("trial") == trial), None)
        if number is None:  # the reference, or a further run
            yield
            return
        end = threading.Event()
        storage, trial_id = self._study._storage, self._study.get_trials(deepcopy=False)[number]._trial_id

        def beat() -> None:
            while True:
                with contextlib.suppress(Exception):  # of a database that is away for a while, or a trial taken from us
                    storage.set_trial_user_attr(trial_id, "beat", time.time())
                if end.wait(self._stale_s / 4):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(5)

    def rows(self) -> list[Row]:
        """The other machines' rows, as far as they were told."""
        told = (t for t in self._trials() if t.user_attrs.get("owner") != self._owner and "row" in t.user_attrs)
        return [unpacked(t.user_attrs["row"]) for t in told]

    def running(self) -> int:
        """How many trials run on other machines, as far as is known."""
        return sum(t.state == TrialState.RUNNING and t.user_attrs.get("owner") != self._owner for t in self._trials())

    def waiting(self) -> int:
        """How many settings wait to be taken."""
        return sum(t.state == TrialState.WAITING for t in self._trials())

    def take_over(self) -> int:
        """End the trials whose machine has not beaten for `stale_s`, and put their settings up again; returns how many."""
        count, now = 0, time.monotonic()
        for t in self._trials():
            if t.state != TrialState.RUNNING or t.user_attrs.get("owner") == self._owner:
                continue
            beat = t.user_attrs.get("beat")
            known, since = self._beats.get(t.number, (None, now))
            if t.number not in self._beats or known != beat:
                self._beats[t.number] = (beat, now)
            elif now - since > self._stale_s:
                count += self._put_up_again(t)
        return count

    def _put_up_again(self, t: optuna.trial.FrozenTrial) -> int:
        try:
            self._study.tell(t.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError, optuna.exceptions.UpdateFinishedTrialError):
            return 0  # another machine was faster, or its own came back
        kept: dict[str, Any] = {k: t.user_attrs[k] for k in ("origin", "proposer", "note", "seed") if k in t.user_attrs}
        starts = 1 + t.user_attrs.get("starts", 0)
        self._study.enqueue_trial(t.params, user_attrs={**kept, "starts": starts, "vanished": t.number})
        return 1

    def _trials(self) -> Sequence[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)
