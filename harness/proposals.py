"""What to try next: an Optuna study in SQLite, asked and told, that survives being killed at any moment.

A row's number is given to an Optuna trial as its attribute `trial` once its setting is accepted; a trial without it never
ran. The storage holds what was proposed, the Parquet rows what came of it; where they differ, the rows are right, and a
lost storage is made anew from them.

An out-of-memory, infeasible, timed-out or crashed trial is told as complete, with the worst values seen so far and a
violated constraint. Told as failed it would be invisible to the sampler, which then comes back to it again and again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from . import ResultsError
from .columns import OBJECTIVES
from .space import Entry, Space, canonical

SAMPLER = "tpe"
TRIES = 8  # draws before a setting that was tried before is measured again
MULTIVARIATE_BELOW = 100  # jointly modelled knobs are ahead in short studies, independent ones in long ones

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Proposal:
    """One setting to measure as the row `trial`."""

    trial: int
    origin: str
    values: dict[str, Any]


class Proposals:
    """The Optuna study of one folder. `rows` are the rows that the folder holds already."""

    def __init__(
        self, folder: Path, space: Space, seed: int, anchors: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self._space, self._seed = space, seed
        self._distributions = {e.name: distribution(e) for e in space.entries}
        self._study = _open(folder / "study.db")
        self._adopt(rows)
        self._enqueue(anchors)

    def pending(self, rows: Sequence[Mapping[str, Any]]) -> list[Proposal]:
        """Accepted settings that have no row: their search was killed, or their row was lost."""
        done = {row["trial"] for row in rows}
        return [
            Proposal(t.user_attrs["trial"], t.user_attrs["origin"], self._space.values(t.params))
            for t in self._accepted()
            if t.user_attrs["trial"] not in done
        ]

    def ask(self) -> Proposal:
        """A new setting: anchors first, then the sampler's. One that was tried before is drawn anew a few times."""
        tried = {canonical(self._space.values(t.params)) for t in self._accepted()}
        number = 1 + max((t.user_attrs["trial"] for t in self._accepted()), default=0)
        for attempt in range(TRIES):
            self._study.sampler = self._sampler()
            trial = self._study.ask(self._distributions)
            values = self._space.values(trial.params)
            if "origin" not in trial.user_attrs:
                trial.set_user_attr("origin", "sampler")
            if canonical(values) not in tried or attempt == TRIES - 1:
                trial.set_user_attr("trial", number)
                return Proposal(number, trial.user_attrs["origin"], values)
            self._study.tell(trial, state=TrialState.FAIL)
        raise AssertionError("unreachable")

    def tell(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Report a row; `rows` are all so far, from which a trial without figures gets the worst values."""
        trial = next((t for t in self._accepted() if t.user_attrs["trial"] == row["trial"]), None)
        if trial is None or trial.state.is_finished():
            return  # the reference, or a row that was measured again: Optuna keeps what it was told first
        optuna.trial.Trial(self._study, trial._trial_id).set_constraint("infeasible", constraint(row))
        self._study.tell(trial.number, told_values(row, rows))

    @property
    def trials(self) -> list[FrozenTrial]:
        """Optuna's own view, for those who look."""
        return self._study.get_trials(deepcopy=False)

    def _accepted(self) -> list[FrozenTrial]:
        return [t for t in self.trials if "trial" in t.user_attrs]

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Seeded by the number of trials, so that a resumed study goes on like an uninterrupted one."""
        count = len(self.trials)
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{count}".encode()).digest()[:4], "big")
        return optuna.samplers.TPESampler(seed=seed, multivariate=count < MULTIVARIATE_BELOW)

    def _adopt(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the storage agree with the rows: drop what was never accepted, tell and add what was measured."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and "trial" not in trial.user_attrs:
                self._study.tell(trial.number, state=TrialState.FAIL)
        known = {t.user_attrs["trial"] for t in self._accepted()}
        for row in rows:
            self.tell(row, rows)
            if row["origin"] != "reference" and row["trial"] not in known:
                self._study.add_trial(
                    create_trial(
                        values=told_values(row, rows),
                        params=self._space.params(self._space.from_row(row)),
                        distributions=self._distributions,
                        user_attrs={"trial": row["trial"], "origin": row["origin"]},
                        constraints={"infeasible": constraint(row)},
                    )
                )

    def _enqueue(self, anchors: Sequence[Mapping[str, Any]]) -> None:
        alive = [t for t in self.trials if t.state != TrialState.FAIL]
        present = [canonical(t.params or t.system_attrs.get("fixed_params", {})) for t in alive]
        for params in anchors:
            if canonical(params) not in present:
                present.append(canonical(params))
                self._study.enqueue_trial(dict(params), user_attrs={"origin": "anchor"})


def distribution(entry: Entry) -> BaseDistribution:
    """How Optuna sees an entry: an ordered choice is the index of its value."""
    if entry.type == "ordinal":
        return IntDistribution(0, len(entry.values) - 1)
    if entry.type == "choice":
        return CategoricalDistribution(entry.values)
    if entry.type == "int":
        return IntDistribution(int(entry.low), int(entry.high), log=entry.log)
    return FloatDistribution(entry.low, entry.high, log=entry.log)


def constraint(row: Mapping[str, Any]) -> float:
    """Above 0 means infeasible. Every trial has it: one without counts as feasible."""
    return -1.0 if row["status"] == "ok" else 1.0


def told_values(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The objectives as Optuna is told them: measured ones, or the worst that any row has; before that, plain bad ones."""
    if row["status"] == "ok":
        return [row[name] for name in OBJECTIVES]
    fallback = {"decode_tok_s": 0.0, "peak_memory_gb": row["limit_gb"], "perplexity": 1e3}
    values = []
    for name, direction in OBJECTIVES.items():
        seen = [r[name] for r in rows if r["status"] == "ok" and math.isfinite(r[name])]
        worst = min if direction == "maximize" else max
        values.append(worst(seen) if seen else fallback[name])
    return values


def _open(path: Path) -> optuna.Study:
    """The study in this SQLite file, made if it is not there; a damaged file is set aside, for the rows can rebuild it."""
    if path.exists() and not _is_sound(path):
        for part in path.parent.glob(path.name + "*"):
            part.replace(part.with_name(f"damaged-{part.name}"))
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
        return optuna.create_study(
            study_name="headrace", storage=storage, directions=[*OBJECTIVES.values()], load_if_exists=True
        )
    except (sqlite3.Error, optuna.exceptions.StorageInternalError) as e:
        raise ResultsError(f"{path} cannot be used ({' '.join(str(e).split())[:120]}); free it, or remove it") from e


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False
