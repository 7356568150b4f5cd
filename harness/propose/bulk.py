"""Bulk writing: all trials of an Optuna study, or all attributes of a trial, in one transaction.

Optuna's own `add_trials` and `set_user_attr` commit each trial and each attribute. Here one commit writes all of them, and a
reader sees either the old trials or the new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

from engine.system.strict_json import to_json

TABLES: tuple[Any, ...] = (
    models.TrialParamModel,
    models.TrialValueModel,
    models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel,
)


def replace_trials(storage: optuna.storages.RDBStorage, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Make `trials` the only trials of a study, numbered from 0."""
    of_study = models.TrialModel.study_id == study_id
    old = sqlalchemy.select(models.TrialModel.trial_id).where(of_study)
    with storage.engine.begin() as connection:
        for model in TABLES:
            connection.execute(sqlalchemy.delete(model.__table__).where(model.trial_id.in_(old)))
        connection.execute(sqlalchemy.delete(models.TrialModel.__table__).where(of_study))
        if not trials:
            return
        connection.execute(
            sqlalchemy.insert(models.TrialModel.__table__),
            [{"number": n, "study_id": study_id, "state": t.state, **_times(t)} for n, t in enumerate(trials)],
        )
        found = sqlalchemy.select(models.TrialModel.number, models.TrialModel.trial_id).where(of_study)
        ids = {line.number: line.trial_id for line in connection.execute(found)}
        for model, lines in zip(TABLES, _lines(trials, ids), strict=True):
            if lines:
                connection.execute(sqlalchemy.insert(model.__table__), lines)


def write_attributes(
    storage: optuna.storages.RDBStorage, trial_id: int, user: Mapping[str, Any], system: Mapping[str, Any]
) -> None:
    """Set attributes of a trial. Raises `UpdateFinishedTrialError` if the trial is finished."""
    state = sqlalchemy.select(models.TrialModel.state).where(models.TrialModel.trial_id == trial_id)
    with storage.engine.begin() as connection:
        storage.check_trial_is_updatable(trial_id, connection.execute(state).scalar_one())
        for model, given in ((models.TrialUserAttributeModel, user), (models.TrialSystemAttributeModel, system)):
            if given:
                old = (model.trial_id == trial_id) & model.key.in_([*given])
                connection.execute(sqlalchemy.delete(model.__table__).where(old))
                lines = [{"trial_id": trial_id, "key": k, "value_json": to_json(v)} for k, v in given.items()]
                connection.execute(sqlalchemy.insert(model.__table__), lines)


def _lines(trials: Sequence[FrozenTrial], ids: Mapping[int, int]) -> tuple[list[dict[str, Any]], ...]:
    """The records of the trials for each of `TABLES`."""
    params, values, users, systems = [], [], [], []
    texts: dict[int, str] = {}
    for number, t in enumerate(trials):
        of = {"trial_id": ids[number]}
        for n, v in t.params.items():
            d = t.distributions[n]
            text = texts.setdefault(id(d), distribution_to_json(d))
            params.append({**of, "param_name": n, "param_value": d.to_internal_repr(v), "distribution_json": text})
        finite = models.TrialValueModel.TrialValueType.FINITE
        values += [{**of, "objective": i, "value": v, "value_type": finite} for i, v in enumerate(t.values or ())]
        users += [{**of, "key": k, "value_json": to_json(v)} for k, v in t.user_attrs.items()]
        systems += [{**of, "key": k, "value_json": to_json(v)} for k, v in t.system_attrs.items()]
    return params, values, users, systems


def _times(trial: FrozenTrial) -> dict[str, datetime | None]:
    """Start and end as Optuna stores them: UTC without a time zone."""
    times = {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
    return {name: None if t is None else t.astimezone(UTC).replace(tzinfo=None) for name, t in times.items()}
