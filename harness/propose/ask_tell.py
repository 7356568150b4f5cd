"""What to try next: an Optuna study, asked and told, that survives being killed at any moment.

A proposal gets its trial number, the user attribute `trial`, once its setting is accepted; an Optuna trial without it never
ran. The storage holds what was proposed, the Parquet rows what came of it; where they differ the rows are right, and a lost
storage is made anew from them. Each round of a search has an Optuna study of its own, into which the earlier settings that
its space still holds are carried.

What could not run, or ended badly, is told as complete, with the worst values seen so far and a violated constraint. Told as
failed it would be invisible to the sampler, which then comes back to it again and again. The study's constraints are told as
constraints. FAIL is what a setting gets that was drawn although it had been tried, and a trial whose machine vanished.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from engine.errors import first_line
from harness import ConfigError, ResultsError
from harness.decisions.reuse import reference_figures
from harness.results.columns import NOT_RUN, row_to_json
from harness.results.metrics import Direction
from harness.space.space import Space, canonical
from harness.study.constraints import Constraint

from .samplers import has_torch, is_random_control, sampler_for, seed_for

TRIES = 8  # draws before a setting that was tried before is measured again
BAD = {"maximize": 0.0, "minimize": 1e9}  # told of a figure as long as no trial has one

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"optuna\._gp")  # when all were told the same values


@dataclass(frozen=True)
class Proposal:
    """One setting to measure as trial `trial`, and who chose it."""

    trial: int
    origin: str
    values: dict[str, Any]
    proposer: str = ""
    note: str = ""
    seed: int | None = None  # of the sampler
    starts: int = 0  # on machines that vanished with it


@dataclass(frozen=True)
class Search:
    """What the sampler has to know of a study, and how it is chosen."""

    objectives: Mapping[str, Direction]
    constraints: tuple[Constraint, ...] = ()
    sampler: str = "auto"
    options: Mapping[str, Any] | None = None
    random_every: int = 0
    seed: int = 0
    limit_gb: float = math.inf


class Proposals:
    """The Optuna study `name` in `storage`. `rows` are the rows there are; of each trial the first run counts."""

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        search: Search,
        space: Space,
        anchors: Sequence[Mapping[str, Any]] = (),
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        dropped: Set[str] = frozenset(),
        owner: str = "",
    ) -> None:
        self._search, self._space, self._dropped, self._owner = search, space, dropped, owner
        self._tried: dict[int, str] = {}
        self._ask_share = 0.0  # the most that asking took, as a share of a trial
        self.sampler = self.why = ""  # which sampler is in use, and why
        self._study = optuna.create_study(
            study_name=name, storage=storage, directions=[*search.objectives.values()], load_if_exists=True
        )
        self._adopt([row for row in rows if not row["run"]])
        self._enqueue(anchors)
        self._sampler(len(self.trials), control=False)

    def pending(self, rows: Sequence[Mapping[str, Any]]) -> list[Proposal]:
        """Accepted settings of ours that have no row: their search was killed, or their row was lost."""
        done = {row["trial"] for row in rows}
        return [self._proposal(t) for t in self._accepted() if t.user_attrs["trial"] not in done and self._is_ours(t)]

    def offer(self, values: Mapping[str, Any], proposer: str, note: str = "") -> bool:
        """Put a setting from outside before what the sampler has; False if it was tried. Raises `ConfigError`."""
        params = self._space.params(values)
        if canonical(self._space.values(params)) in self._known(self.trials):
            return False
        attributes = {"origin": "proposer", "proposer": proposer, "note": note}
        self._study.enqueue_trial(dict(params), user_attrs=attributes)
        return True

    def ask(self, trial_s: float | None = None) -> Proposal:
        """A new setting: anchors and offers first, then the sampler's. One that was tried is drawn anew a few times.
        `trial_s`, how long a trial takes, lets a sampler that asks for too long give way to a faster one."""
        begin = time.perf_counter()
        proposal = self._ask()
        if trial_s and proposal.origin == "sampler":
            self._ask_share = max(self._ask_share, (time.perf_counter() - begin) / trial_s)  # once is enough
        return proposal

    def _ask(self) -> Proposal:
        for attempt in range(TRIES):
            trials = self.trials
            known = self._known(trials)
            control = is_random_control(self._first + len(trials), self._search.random_every)
            seed = self._sampler(len(trials), control=control)
            trial = self._study.ask()
            values = self._space.suggest(trial)
            if canonical(values) in known and attempt < TRIES - 1:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            if "origin" not in trial.user_attrs:
                trial.set_user_attr("origin", "random" if control else "sampler")
                trial.set_user_attr("proposer", "random" if control else self.sampler)
                trial.set_user_attr("seed", seed)
            if self._owner:
                trial.set_user_attr("owner", self._owner)
            trial.set_user_attr("trial", self._first + trial.number)
            return self._proposal(trial)
        raise AssertionError("unreachable")

    def tell(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Report a trial's first run; `rows` are all so far, from which a trial without figures gets the worst values."""
        trial = next((t for t in reversed(self._accepted()) if t.user_attrs["trial"] == row["trial"]), None)
        if row["run"] or trial is None or trial.state.is_finished() or not self._is_ours(trial):
            return  # the reference, or a row that was measured again: Optuna keeps what it was told first
        with contextlib.suppress(UpdateFinishedTrialError):  # at this moment: another machine took it for vanished
            told = Trial(self._study, trial._trial_id)
            for name, value in self._constraints(row, rows).items():
                told.set_constraint(name, value)
            if self._owner:
                told.set_user_attr("row", row_to_json(row))
            self._study.tell(trial.number, told_values(row, rows, self._search.objectives), skip_if_finished=True)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Optuna's own view, for those who look."""
        return self._study.get_trials(deepcopy=False)

    @property
    def study(self) -> optuna.Study:
        """The Optuna study itself."""
        return self._study

    def _proposal(self, trial: FrozenTrial | Trial) -> Proposal:
        a = trial.user_attrs
        values = self._space.values(trial.params)
        return Proposal(
            a["trial"], a["origin"], values, a.get("proposer", ""), a.get("note", ""), a.get("seed"), a.get("starts", 0)
        )

    def _accepted(self) -> list[FrozenTrial]:
        """Without those that another machine took for vanished: their settings are put up again."""
        attributes = ((t, t.user_attrs) for t in self.trials if t.state != TrialState.FAIL)
        return [t for t, a in attributes if "trial" in a and "carried" not in a]

    def _is_ours(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs.get("owner", "") == self._owner)

    def _known(self, trials: Sequence[FrozenTrial]) -> set[str]:
        """The settings that were accepted so far, also those that were carried here."""
        known = set()
        for t in trials:
            if t.state == TrialState.FAIL or "trial" not in t.user_attrs:
                continue
            text = self._tried.get(t.number) or canonical(self._space.values(t.params))
            self._tried[t.number] = text
            known.add(text)
        return known

    def _sampler(self, count: int, *, control: bool) -> int:
        """Set the sampler, seeded by the number of trials, so that a resumed study goes on like an uninterrupted one."""
        s = self._search
        seed = seed_for(s.seed, self._first + count)
        name, options = ("random", {}) if control else (s.sampler, dict(s.options or {}))
        self._study.sampler, why = sampler_for(
            name,
            options,
            seed=seed,
            space_flat=self._space.flat,
            trials_so_far=count,
            objectives=len(s.objectives),
            torch=has_torch(),
            ask_share=self._ask_share,
            shared=bool(self._owner),
        )
        if not control:
            self.why, self.sampler = why, type(self._study.sampler).__name__.removesuffix("Sampler").lower()
        return seed

    def _adopt(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the storage agree with the rows: end what was never accepted, tell and add what was measured."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and "trial" not in trial.user_attrs and not self._owner:
                self._study.tell(trial.number, state=TrialState.FAIL)
        if "first" in self._study.user_attrs:
            self._refuse_strange(rows)
        else:
            known = {t.user_attrs.get("trial") for t in self.trials}
            for row in rows:
                if row["trial"] not in known and row["origin"] != "reference":
                    self._carry(row, rows)
            top = max((row["trial"] for row in rows), default=0)
            self._study.set_user_attr("first", top + 1 - len(self.trials))  # the number of its Optuna trial 0
        self._first = int(self._study.user_attrs["first"])
        open_ones = {t.user_attrs["trial"] for t in self._accepted() if not t.state.is_finished()}
        for row in rows:
            if row["trial"] in open_ones:  # looking each one up in the storage takes long
                self.tell(row, rows)

    def _refuse_strange(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of ours that a shared study does not know would have the numbers of others' trials."""
        ours = {t.user_attrs["trial"] for t in self.trials if "trial" in t.user_attrs and self._is_ours(t)}
        strange = [row["trial"] for row in rows if row["trial"] not in ours and row["origin"] != "reference"]
        if strange and self._owner:
            raise ConfigError(
                f"results_dir holds {len(strange)} trials that the shared study does not know (the first: {strange[0]}); "
                "give another results_dir, and join the rows with python -m harness.merge"
            )

    def _carry(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a measured setting, if this space holds it: what does not move here must be at the value it is held at."""
        values = {k: v for k, v in self._space.from_row(row).items() if k not in self._dropped}
        held = {k: v for k, v in self._space.fixed.items() if k not in self._dropped}
        if any(row[name] != value for name, value in held.items() if row.get(name) is not None):
            return
        with contextlib.suppress(ConfigError):
            params = self._space.params(values)
            shared = {"owner": self._owner, "row": row_to_json(row)} if self._owner else {}
            self._study.add_trial(
                create_trial(
                    values=told_values(row, rows, self._search.objectives),
                    params=dict(params),
                    distributions={name: d for name, d in self._space.distributions().items() if name in params},
                    user_attrs={"trial": row["trial"], "origin": row["origin"], "carried": True, **shared},
                    constraints=self._constraints(row, rows),
                )
            )

    def _constraints(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Above 0 means violated. Every trial has them all: one without counts as feasible. What is not known is 0."""
        reference = reference_figures(rows) if self._search.constraints else {}
        told = {c.text: c.excess(row.get(c.metric), reference) or 0.0 for c in self._search.constraints}
        return {"possible": impossible(row, self._search.limit_gb), **told}

    def _enqueue(self, anchors: Sequence[Mapping[str, Any]]) -> None:
        alive = [t for t in self.trials if t.state != TrialState.FAIL]
        present = [canonical(t.params or t.system_attrs.get("fixed_params", {})) for t in alive]
        for params in anchors:
            if canonical(params) not in present:
                present.append(canonical(params))
                self._study.enqueue_trial(dict(params), user_attrs={"origin": "anchor", "proposer": "anchor"})


def impossible(row: Mapping[str, Any], limit_gb: float) -> float:
    """The constraint that every trial has: above 0 if it could not run, by how much of the limit where memory was why."""
    if row["status"] in ("ok", "stopped", "dominated"):
        return -1.0
    peak = max(row["seen_peak_gb"] or 0.0, row["predicted_peak_gb"] or 0.0)
    over = peak / limit_gb - 1 if math.isfinite(limit_gb) else 0.0
    return over if over > 0 else 1.0 if row["status"] != "oom" else 0.1


def told_values(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], objectives: Mapping[str, Direction]
) -> list[float]:
    """The objectives as Optuna is told them: measured ones, or the worst that any row has; before that, plain bad ones."""
    values = []
    for name, direction in objectives.items():
        own = row[name] if row["status"] in ("ok", "stopped", *NOT_RUN) else None
        if own is None or not math.isfinite(own):
            seen = [r[name] for r in rows if r["status"] == "ok" and r[name] is not None and math.isfinite(r[name])]
            worst = min if direction == "maximize" else max
            own = worst(seen) if seen else BAD[direction]
        values.append(float(own))
    return values


def open_storage(folder: Path) -> optuna.storages.RDBStorage:
    """The storage of a study of one machine, its SQLite file. A damaged one is set aside, for the rows can rebuild it.
    Raises `ResultsError`."""
    path = folder / "study.db"
    if path.exists() and not _is_sound(path):
        for part in path.parent.glob(path.name + "*"):
            part.replace(part.with_name(f"damaged-{part.name}"))
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    except RuntimeError as e:  # Optuna's word for tables of another version
        raise ResultsError(f"{path} was written by another version of Optuna ({first_line(e)}); use study.name=OTHER") from e
    except (sqlite3.Error, optuna.exceptions.StorageInternalError) as e:
        raise ResultsError(f"{path} cannot be used ({' '.join(str(e).split())[:120]}); free it, or remove it") from e


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.OperationalError:  # a full disk, a lock: its content may be sound, and whoever opens it will say
        return True
    except sqlite3.DatabaseError:
        return False
