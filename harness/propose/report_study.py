"""Report study: the report's figures as a second Optuna study, `NAME report`, in the `study.db` of a study's folder.

The study that proposes settings keeps the first run of each trial, and placeholders for those that failed, because a sampler
learns from them. Its best trials are therefore not the report's front. Here each trial has the estimate of all its runs:

    COMPLETE   measured; a trial that violates a constraint of the study violates the constraint `feasible` here
    PRUNED     nothing to compare: stopped early, pruned by arithmetic, or the reference
    FAIL       the run failed, or the number has no row

`best_trials` are the front. A trial that Optuna would count among them, or that would displace a member, although the report
does not (undecided, suspect, or no better beyond noise), violates the constraint `front`. Two members of equal speed whose
memory differs by less than its noise are the one exception: Optuna lists the smaller.

All trials are replaced in one transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from engine import Knobs
from engine.effective import effective
from engine.errors import first_line
from engine.system.strict_json import to_json
from harness import ResultsError
from harness.analysis.pareto import Analysis, signs

from .bulk import replace_trials
from .knob_storage import FORMAT, LISTED, VALUES
from .outcomes import attributes
from .storage import STORAGE, UNREACHABLE, open_storage

if TYPE_CHECKING:
    import pandas as pd

ARTIFACTS = "artifacts"
FAILED = ("oom", "timeout", "hang", "crash", "wrong")
LOG_SCALE = 8.0  # ratio of the ends from which a numeric knob's axis is logarithmic
MOST_LISTED = 12  # numbers in a list with "unset"; of a knob with more, the trials where it is unset have no parameter
Row = Mapping[str, Any]


def name_of(folder: Path) -> str:
    """The name of the report study of a folder."""
    return f"{folder.name} report"


def publish(folder: Path, rows: Sequence[Row], found: Analysis, chosen: Mapping[str, int]) -> str:
    """Write the report study; returns its place and its name, or the reason why it cannot be written, in one line."""
    try:
        write_report_study(folder, rows, found, chosen)
    except (ResultsError, OSError, *UNREACHABLE) as e:
        return f"not written: {first_line(e)}"
    return f"'{name_of(folder)}' in {STORAGE}"


def write_report_study(folder: Path, rows: Sequence[Row], found: Analysis, chosen: Mapping[str, int]) -> optuna.Study:
    """Write the report study of a folder and return it.

    found: the analysis of the rows. chosen: the trial of each recommended setting. Raises `ResultsError` if `study.db`
    cannot be opened.
    """
    storage = open_storage(folder)
    study = optuna.create_study(
        study_name=name_of(folder), storage=storage, directions=[*found.objectives.values()], load_if_exists=True
    )
    study.set_metric_names([*found.objectives])
    standing = found.standings["standing"]
    trials, fixed = report_trials(rows, found, chosen)
    facts = {
        "front": sorted(int(t) for t in standing.index[standing == "front"]),
        "recommended": dict(chosen),
        "knobs": fixed,
    }
    for name, value in {FORMAT: VALUES, **facts}.items():
        study.set_user_attr(name, value)
    link_logs(folder, trials)
    replace_trials(storage, study._study_id, trials)
    return study


def report_trials(
    rows: Sequence[Row], found: Analysis, chosen: Mapping[str, int]
) -> tuple[list[FrozenTrial], dict[str, Any]]:
    """One Optuna trial for each number from 0 to the last, and the knobs that all trials share."""
    first = {row["trial"]: row for row in sorted(rows, key=lambda r: -(r["run"] or 0))}
    settings, fixed = _knobs(first)
    objectives, points = [*found.objectives], found.estimates.to_dict("index")
    ranks = found.standings[["standing", "confirmed"]].to_dict("index")
    whole = found.estimates[objectives].notna().all(axis=1) & (found.estimates["origin"] != "reference")
    known = found.estimates[whole]
    excluded = _excluded(known[objectives].to_numpy(float) * signs(objectives), known, found.standings)
    distributions = _distributions(settings.values())
    names = {t: {"recommended": ", ".join(name for name in chosen if chosen[name] == t)} for t in chosen.values()}
    trials = []
    for number in range(max(first, default=-1) + 1):
        if number not in first:
            trials.append(create_trial(state=TrialState.FAIL, user_attrs={"status": "not measured"}))
            continue
        row, values, limits = first[number], None, {}
        if number in known.index:
            values = [float(points[number][name]) for name in objectives]
            limits = {"feasible": 0.0 if points[number]["feasible"] else 1.0, "front": float(number in excluded)}
        params = _shown(settings.get(number, {}), distributions)
        trial = create_trial(
            state=_state(row["status"], values),
            values=values,
            params=params,
            distributions={n: distributions[n] for n in params},
            user_attrs={**_facts(row, points.get(number), ranks.get(number), objectives), **names.get(number, {})},
            system_attrs={LISTED: [*limits.values()]} if limits else {},
            constraints=limits,
        )
        if (start := row.get("started_at")) is not None:
            trial.datetime_start, trial.datetime_complete = start, start + timedelta(seconds=row.get("wall_s") or 0.0)
        trials.append(trial)
    return trials, fixed


def link_logs(folder: Path, trials: Sequence[FrozenTrial]) -> None:
    """Make each run's log that is not empty an artifact of its trial, for optuna-dashboard's `--artifact-dir`.

    The dashboard accepts names of hexadecimal digits and hyphens only, so the folder holds symbolic links with such names.
    """
    links = folder / ARTIFACTS
    for log in sorted((folder / "logs").glob("trial-*-*.log")):
        name = log.stem.removeprefix("trial-")
        number = int(name.partition("-")[0])
        if number < len(trials) and log.stat().st_size:
            links.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (links / name).symlink_to(Path("..", "logs", log.name))
            meta = {"artifact_id": name, "filename": log.name, "mimetype": "text/plain", "encoding": None}
            trials[number].system_attrs = {**trials[number].system_attrs, f"artifacts:{name}": to_json(meta)}


def _state(status: str, values: Sequence[float] | None) -> TrialState:
    if values is not None:
        return TrialState.COMPLETE
    return TrialState.FAIL if status in FAILED else TrialState.PRUNED


def _excluded(losses: np.ndarray, known: pd.DataFrame, every: pd.DataFrame) -> set[int]:
    """The trials that Optuna's front would have, or that would displace a member of the report's front."""
    members = set(every.index[every["standing"] == "front"])
    inside = np.array([t in members for t in known.index], bool)
    feasible = known["feasible"].to_numpy(bool)
    front = losses[inside]
    out = set()
    for i in np.flatnonzero(~inside & feasible):
        better = (losses[i] <= front).all(axis=1) & (losses[i] < front).any(axis=1)
        worse = (front <= losses[i]).all(axis=1) & (front < losses[i]).any(axis=1)
        if better.any() or not worse.any():
            out.add(int(known.index[i]))
    return out


def _facts(row: Row, point: Row | None, rank: Row | None, objectives: Sequence[str]) -> dict[str, Any]:
    """The user attributes of a trial: the facts of its first row, its estimate with interval, and its standing.

    point: its line of `estimates`. rank: its standing and whether it is confirmed. Either is None if the trial has none.
    """
    facts = {"trial": row["trial"], "origin": row["origin"], "round": row.get("round") or 1, **attributes(row)}
    if point is not None:
        facts |= {"runs": int(point["runs"]), "fresh_runs": int(point["fresh_runs"]), "suspect": bool(point["suspect"])}
        shown = dict.fromkeys(["decode_tok_s", *objectives])
        names = [f"{metric}{end}" for metric in shown for end in ("", "_low", "_high")]
        facts |= {name: float(point[name]) for name in names if np.isfinite(point[name])}
    if rank is not None:
        facts |= {"standing": str(rank["standing"]), "confirmed": bool(rank["confirmed"])}
    elif row["origin"] == "reference":
        facts["standing"] = "reference"
    elif point is not None:
        facts["standing"] = "suspect" if point["suspect"] else "infeasible"
    return facts


def _knobs(first: Mapping[int, Row]) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """The knobs in effect that vary over the trials, for each trial without the reference; and the others."""
    names = Knobs.names()
    settings = {t: effective({n: row.get(n) for n in names}) for t, row in first.items() if row["origin"] != "reference"}
    values = {n: {s[n] for s in settings.values() if n in s} for n in names}
    varying = {n for n, seen in values.items() if len(seen) > 1}
    fixed = {n: next(iter(seen)) for n, seen in values.items() if len(seen) == 1 and seen != {Knobs().as_dict()[n]}}
    return {t: {n: s[n] for n in names if n in varying and n in s} for t, s in settings.items()}, fixed


def _shown(setting: Row, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The setting's values that the distributions have."""
    return {n: v for n, v in setting.items() if v is not None or isinstance(distributions[n], CategoricalDistribution)}


def _distributions(settings: Any) -> dict[str, BaseDistribution]:
    """For each knob the range of its values if all are numbers, else their list, numbers first and in order."""
    seen: dict[str, set[Any]] = {}
    for setting in settings:
        for name, value in setting.items():
            seen.setdefault(name, set()).add(value)
    return {name: _distribution(values) for name, values in seen.items()}


def _distribution(values: set[Any]) -> BaseDistribution:
    numbers = sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
    if len(numbers) < len(values) and (values - {*numbers} != {None} or len(numbers) <= MOST_LISTED):
        return CategoricalDistribution([*numbers, *sorted(values - {*numbers}, key=str)])
    log = numbers[0] > 0 and numbers[-1] / numbers[0] >= LOG_SCALE
    if all(isinstance(v, int) for v in numbers):
        return IntDistribution(int(numbers[0]), int(numbers[-1]), log=log)
    return FloatDistribution(numbers[0], numbers[-1], log=log)
