"""Knob storage: an Optuna storage that holds knob values where the sampler sees indices.

A sampler learns from the order of an ordinal knob's values only if its parameter is a number, so the parameter is the index
of the value. A reader of the storage, such as optuna-dashboard or `optuna.load_study`, wants the values. Optuna stores a
parameter of a listed choice as the index of the choice, so both are the same record with another distribution: this wrapper
replaces the distribution on its way in and out. A float is stored as rounded for the engine.

The list `constraints` among a trial's attributes is for optuna-dashboard, which does not read constraints with names. It is
hidden from the sampler, which would otherwise learn every constraint twice.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any, cast

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from engine.system.strict_json import from_json, to_json
from harness.space.entry import Entry

from .bulk import write_attributes

LISTED = "constraints"  # the attribute with a trial's constraints as a list
FORMAT, VALUES = "params", "values"  # the study attribute that marks parameters stored as values

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"optuna\._gp")  # raised when all values are equal


def as_knobs(storage: optuna.storages.BaseStorage, entries: Sequence[Entry]) -> optuna.storages.BaseStorage:
    """`storage` seen through the entries of a space: a sampler reads and writes indices, the storage holds values."""
    return cast(optuna.storages.BaseStorage, _KnobStorage(optuna.storages.get_storage(storage), entries))


def set_attributes(
    study: optuna.Study, trial_id: int, user: Mapping[str, Any], system: Mapping[str, Any] | None = None
) -> None:
    """Set user and system attributes of an unfinished trial of a study with a knob storage.

    Raises `UpdateFinishedTrialError` if the trial is finished.
    """
    cast(_KnobStorage, study._storage).set_attributes(trial_id, user, system or {})


def listed(excess: Mapping[str, float]) -> dict[str, Any]:
    """Constraints as Optuna stores them, by name, and as optuna-dashboard reads them, as a list."""
    return {**{f"{LISTED}:{name}": value for name, value in excess.items()}, LISTED: [*excess.values()]}


class _KnobStorage:
    """The storage; all methods that are not here are those of the storage behind it."""

    def __init__(self, behind: optuna.storages.BaseStorage, entries: Sequence[Entry]) -> None:
        self._behind = behind
        self._entries = {e.name: e for e in entries}
        self._lists = {e.name: CategoricalDistribution(e.values) for e in entries if e.type == "ordinal"}
        self._finished: dict[int, FrozenTrial] = {}  # by Optuna's trial id, as the sampler sees them

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def set_trial_param(self, trial_id: int, name: str, internal: float, distribution: BaseDistribution) -> None:
        stored = self._lists.get(name, distribution)
        self._behind.set_trial_param(trial_id, name, self._rounded(name, internal), stored)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is not None:
            template_trial = copy.copy(template_trial)
            names = self._lists.keys() & template_trial.params.keys()
            template_trial.params = self._values(template_trial.params)
            template_trial.distributions = {**template_trial.distributions, **{n: self._lists[n] for n in names}}
            if fixed := template_trial.system_attrs.get("fixed_params"):
                template_trial.system_attrs = {**template_trial.system_attrs, "fixed_params": self._values(fixed)}
        return self._behind.create_new_trial(study_id, template_trial)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._seen(self._behind.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [self._seen(t) for t in self._behind.get_all_trials(study_id, deepcopy=False, states=states)]
        return copy.deepcopy(trials) if deepcopy else trials

    def set_attributes(self, trial_id: int, user: Mapping[str, Any], system: Mapping[str, Any]) -> None:
        """Set several attributes of an unfinished trial; in a database in one transaction, where Optuna has one for each."""
        backend = getattr(self._behind, "_backend", None)
        if isinstance(backend, optuna.storages.RDBStorage):
            write_attributes(backend, trial_id, user, system)
            return
        for name, value in user.items():
            self._behind.set_trial_user_attr(trial_id, name, value)
        for name, value in system.items():
            self._behind.set_trial_system_attr(trial_id, name, value)

    def _seen(self, trial: FrozenTrial) -> FrozenTrial:
        """A stored trial as the sampler sees it."""
        if trial._trial_id in self._finished:
            return self._finished[trial._trial_id]
        seen = copy.copy(trial)
        listed = {n: d for n, d in self._lists.items() if isinstance(trial.distributions.get(n), CategoricalDistribution)}
        seen.params = {n: self._index(n, v) if n in listed else v for n, v in trial.params.items()}
        seen.distributions = {**trial.distributions, **{n: self._entries[n].distribution() for n in listed}}
        seen.system_attrs = {k: v for k, v in trial.system_attrs.items() if k != LISTED}
        if fixed := trial.system_attrs.get("fixed_params"):
            seen.system_attrs["fixed_params"] = {n: self._index(n, v) for n, v in fixed.items()}
        if trial.state.is_finished():
            self._finished[trial._trial_id] = seen
        return seen

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {n: self._entries[n].decode(v) if n in self._entries else v for n, v in params.items()}

    def _index(self, name: str, value: Any) -> Any:
        return self._lists[name].choices.index(value) if name in self._lists else value

    def _rounded(self, name: str, internal: float) -> float:
        entry = self._entries.get(name)
        return internal if entry is None or entry.type != "float" else float(entry.decode(internal))


def mark_values(study: optuna.Study, storage: optuna.storages.BaseStorage, entries: Sequence[Entry]) -> None:
    """Mark a study's parameters as values; those of an earlier version, which stored indices, are replaced first."""
    if study.user_attrs.get(FORMAT) == VALUES:
        return
    if isinstance(storage, optuna.storages.RDBStorage):
        with storage.engine.begin() as connection:
            _replace_indices(connection, study._study_id, [e for e in entries if e.type == "ordinal"])
    study.set_user_attr(FORMAT, VALUES)


def _replace_indices(connection: sqlalchemy.Connection, study_id: int, entries: Sequence[Entry]) -> None:
    trials = "trial_id IN (SELECT trial_id FROM trials WHERE study_id = :study)"
    for e in entries:
        change = f"UPDATE trial_params SET distribution_json = :new WHERE param_name = :name AND {trials}"
        new = distribution_to_json(CategoricalDistribution(e.values))
        connection.execute(sqlalchemy.text(change), {"new": new, "name": e.name, "study": study_id})
    enqueued = f"SELECT trial_id, value_json FROM trial_system_attributes WHERE key = 'fixed_params' AND {trials}"
    for trial_id, text in connection.execute(sqlalchemy.text(enqueued), {"study": study_id}).all():
        fixed = from_json(text)
        fixed |= {e.name: e.decode(fixed[e.name]) for e in entries if e.name in fixed}
        change = "UPDATE trial_system_attributes SET value_json = :new WHERE key = 'fixed_params' AND trial_id = :trial"
        connection.execute(sqlalchemy.text(change), {"new": to_json(fixed), "trial": trial_id})
