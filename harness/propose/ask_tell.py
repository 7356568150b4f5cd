"""Proposals: settings from an Optuna study, which gets their rows and survives kill -9 at any moment.

An accepted setting gets a trial number, the user attribute `trial`; an Optuna trial without one never ran. The storage holds
the proposals, the Parquet rows hold the results. Where they differ, the rows are right: a lost storage is rebuilt from them.
Each round has its own Optuna study, into which the earlier settings that its space still contains are copied.

Every measured trial is reported as complete (see `outcomes`). The state FAIL marks a duplicate draw, and a trial whose
machine vanished.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from harness import ConfigError
from harness.results.columns import row_to_json
from harness.results.metrics import Direction
from harness.space.space import Space, canonical
from harness.study.constraints import Constraint

from .knob_storage import as_knobs, listed, mark_values, set_attributes
from .outcomes import attributes, constraint_values, objective_values
from .samplers import has_torch, is_random_control, sampler_for, seed_for

DRAWS = 8  # the last draw is accepted even if its setting was measured before


@dataclass(frozen=True)
class Proposal:
    """One setting to measure as trial `trial`, and its origin."""

    trial: int
    origin: str
    values: dict[str, Any]
    proposer: str = ""
    note: str = ""
    seed: int | None = None  # of the sampler
    starts: int = 0  # earlier starts, on machines that vanished


@dataclass(frozen=True)
class Search:
    """The facts of a study that the sampler needs, and the choice of the sampler."""

    objectives: Mapping[str, Direction]
    constraints: tuple[Constraint, ...] = ()
    sampler: str = "auto"
    options: Mapping[str, Any] | None = None
    random_every: int = 0
    seed: int = 0
    limit_gb: float = math.inf


PROPOSAL = ("trial", "origin", "proposer", "note", "seed", "starts")  # user attributes of an accepted trial


class Proposals:
    """The Optuna study `name` in `storage`.

    rows: all rows so far; the first run of each trial counts. dropped: knobs whose earlier values do not matter. owner: the
    name of this machine in a shared study, else empty.
    """

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
        self._ask_share = 0.0  # largest duration of a proposal, as a share of a trial
        self.sampler = self.why = ""  # name of the sampler in use, and the reason for it
        self._study = _opened(storage, name, search, space)
        self._adopt([row for row in rows if not row["run"]])
        self._enqueue(anchors)
        self._sampler(len(self.trials), control=False)

    def pending(self, rows: Sequence[Mapping[str, Any]]) -> list[Proposal]:
        """Accepted settings of this machine without a row, after a kill or a lost row."""
        done = {row["trial"] for row in rows}
        return [self._proposal(t) for t in self._accepted() if t.user_attrs["trial"] not in done and self._is_ours(t)]

    def offer(self, values: Mapping[str, Any], proposer: str, note: str = "") -> bool:
        """Enqueue an external setting before the sampler's; False if it was tried before. Raises `ConfigError`."""
        params = self._space.params(values)
        if canonical(self._space.values(params)) in self._known(self.trials):
            return False
        attributes = {"origin": "proposer", "proposer": proposer, "note": note}
        self._study.enqueue_trial(dict(params), user_attrs=attributes)
        return True

    def ask(self, trial_s: float | None = None) -> Proposal:
        """A new setting: anchors and offers first, then the sampler's. A duplicate is redrawn, up to `DRAWS` times.

        trial_s: duration of a trial. A sampler that takes too large a share of it is replaced by a faster one.
        """
        begin = time.perf_counter()
        proposal = self._ask()
        if trial_s and proposal.origin == "sampler":
            self._ask_share = max(self._ask_share, (time.perf_counter() - begin) / trial_s)
        return proposal

    def _ask(self) -> Proposal:
        for attempt in range(DRAWS):
            trials = self.trials
            known = self._known(trials)
            control = is_random_control(self._first + len(trials), self._search.random_every)
            seed = self._sampler(len(trials), control=control)
            trial = self._study.ask()
            values = self._space.suggest(trial)
            if canonical(values) in known and attempt < DRAWS - 1:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            drawn = (
                {"origin": "random", "proposer": "random"} if control else {"origin": "sampler", "proposer": self.sampler}
            )
            facts = {} if "origin" in trial.user_attrs else {**drawn, "seed": seed}
            facts |= {"owner": self._owner} if self._owner else {}
            set_attributes(self._study, trial._trial_id, {**facts, "trial": self._first + trial.number})
            return self._proposal(self._study._storage.get_trial(trial._trial_id))
        raise AssertionError("unreachable")

    def tell(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Report a trial's first run. rows: all rows so far, whose worst values stand for missing ones."""
        trial = next((t for t in reversed(self._accepted()) if t.user_attrs["trial"] == row["trial"]), None)
        if row["run"] or trial is None or trial.state.is_finished() or not self._is_ours(trial):
            return  # the reference or a repeated run: Optuna keeps the first values of a trial
        with contextlib.suppress(UpdateFinishedTrialError):  # another machine has just declared this one vanished
            shared = {"row": row_to_json(row)} if self._owner else {}
            limits = listed(self._constraints(row, rows))
            set_attributes(self._study, trial._trial_id, {**attributes(row), **shared}, limits)
            self._study.tell(trial.number, objective_values(row, rows, self._search.objectives), skip_if_finished=True)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def study(self) -> optuna.Study:
        return self._study

    def _proposal(self, trial: FrozenTrial | Trial) -> Proposal:
        facts = {name: trial.user_attrs[name] for name in PROPOSAL if name in trial.user_attrs}
        return Proposal(values=self._space.values(trial.params), **facts)

    def _accepted(self) -> list[FrozenTrial]:
        """The numbered trials, without copies of earlier rounds and without those of vanished machines."""
        given = ((t, t.user_attrs) for t in self.trials if t.state != TrialState.FAIL)
        return [t for t, names in given if "trial" in names and "carried" not in names]

    def _is_ours(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs.get("owner", "") == self._owner)

    def _known(self, trials: Sequence[FrozenTrial]) -> set[str]:
        """The accepted settings, those of earlier rounds included."""
        known = set()
        for t in trials:
            if t.state == TrialState.FAIL or "trial" not in t.user_attrs:
                continue
            text = self._tried.get(t.number) or canonical(self._space.values(t.params))
            self._tried[t.number] = text
            known.add(text)
        return known

    def _sampler(self, count: int, *, control: bool) -> int:
        """Set the sampler. Its seed is derived from the number of trials, so a resumed study proposes the same settings."""
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
        """Make the storage agree with the rows: end trials without a number, and add or complete measured ones."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and "trial" not in trial.user_attrs and not self._owner:
                self._study.tell(trial.number, state=TrialState.FAIL)
        if "first" in self._study.user_attrs:
            self._check_owner(rows)
        else:
            known = {t.user_attrs.get("trial") for t in self.trials}
            for row in rows:
                if row["trial"] not in known and row["origin"] != "reference":
                    self._carry(row, rows)
            top = max((row["trial"] for row in rows), default=0)
            self._study.set_user_attr("first", top + 1 - len(self.trials))  # number of Optuna's trial 0
        self._first = int(self._study.user_attrs["first"])
        running = {t.user_attrs["trial"] for t in self._accepted() if not t.state.is_finished()}
        for row in rows:
            if row["trial"] in running:  # `tell` searches the storage, which is slow for every row
                self.tell(row, rows)

    def _check_owner(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raise `ConfigError` for rows that a shared study does not know: their numbers belong to other machines' trials."""
        known = {t.user_attrs["trial"] for t in self.trials if "trial" in t.user_attrs and self._is_ours(t)}
        unknown = [row["trial"] for row in rows if row["trial"] not in known and row["origin"] != "reference"]
        if unknown and self._owner:
            raise ConfigError(
                f"results_dir holds {len(unknown)} trials unknown to the shared study (the first: {unknown[0]}); "
                "give another results_dir, and join the rows with python -m harness.merge"
            )

    def _carry(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Copy a measured setting into this study if its space contains it: fixed knobs must have their fixed values."""
        values = {k: v for k, v in self._space.from_row(row).items() if k not in self._dropped}
        fixed = {k: v for k, v in self._space.fixed.items() if k not in self._dropped}
        if any(row[name] != value for name, value in fixed.items() if row.get(name) is not None):
            return
        with contextlib.suppress(ConfigError):
            params = self._space.params(values)
            shared = {"owner": self._owner, "row": row_to_json(row)} if self._owner else {}
            carried = {"trial": row["trial"], "origin": row["origin"], "carried": True}
            self._study.add_trial(
                create_trial(
                    values=objective_values(row, rows, self._search.objectives),
                    params=dict(params),
                    distributions={name: d for name, d in self._space.distributions().items() if name in params},
                    user_attrs={**attributes(row), **carried, **shared},
                    system_attrs=listed(self._constraints(row, rows)),
                )
            )

    def _constraints(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return constraint_values(row, rows, self._search.constraints, self._search.limit_gb)

    def _enqueue(self, anchors: Sequence[Mapping[str, Any]]) -> None:
        alive = [t for t in self.trials if t.state != TrialState.FAIL]
        present = [canonical(t.params or t.system_attrs.get("fixed_params", {})) for t in alive]
        for params in anchors:
            if canonical(params) not in present:
                present.append(canonical(params))
                self._study.enqueue_trial(dict(params), user_attrs={"origin": "anchor", "proposer": "anchor"})


def _opened(storage: optuna.storages.BaseStorage, name: str, search: Search, space: Space) -> optuna.Study:
    """The study of this name, made if there is none. Its storage holds knob values; the study has indices."""
    study = optuna.create_study(
        study_name=name,
        storage=as_knobs(storage, space.entries),
        directions=[*search.objectives.values()],
        load_if_exists=True,
    )
    mark_values(study, storage, space.entries)
    study.set_metric_names([*search.objectives])
    return study
