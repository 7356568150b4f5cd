"""Bulk writing: the same trials as Optuna's own `add_trial` writes, in place of the old ones."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.propose.bulk import replace_trials
from harness.propose.storage import open_storage

RANGES = {
    "a": FloatDistribution(0.5, 8),
    "b": IntDistribution(1, 64, log=True),
    "c": CategoricalDistribution([2, None, "x"]),
}


def trial(i: int, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    made = create_trial(
        state=state,
        values=[float(i), 2.0] if state == TrialState.COMPLETE else None,
        params={"a": 0.5 + i, "b": 2**i, "c": (2, None, "x")[i % 3]},
        distributions=RANGES,
        user_attrs={"trial": i, "status": "ok"},
        system_attrs={"constraints": [0.0]},
        constraints={"front": float(i % 2)},
    )
    made.datetime_start = made.datetime_complete = datetime(2026, 1, 1, 12, i)
    return made


def facts(study: optuna.Study) -> list[tuple[object, ...]]:
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.system_attrs, t.datetime_start)
        for t in study.get_trials()
    ]


def test_the_trials_are_those_that_optuna_writes_and_replace_the_old_ones(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    other, ours, theirs = (
        optuna.create_study(study_name=name, storage=storage, directions=["maximize", "minimize"])
        for name in ("other", "ours", "theirs")
    )
    other.add_trial(trial(1))
    trials = [trial(0), trial(1), trial(2, TrialState.PRUNED), trial(3, TrialState.FAIL)]
    theirs.add_trials(trials)
    for given in ([trial(5)], trials, trials):
        replace_trials(storage, ours._study_id, given)
    ours, theirs, other = (
        optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path / 'study.db'}")
        for name in ("ours", "theirs", "other")
    )
    assert facts(ours) == facts(theirs)
    assert [t.number for t in ours.best_trials] == [t.number for t in theirs.best_trials]
    assert len(other.trials) == 1
    replace_trials(storage, ours._study_id, [])
    assert not optuna.load_study(study_name="ours", storage=storage).trials
