"""Settings of a study: the setting file of each recommended setting, of default and reference, and of any trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import Knobs
from engine.errors import did_you_mean
from engine.knobs import WORDS
from engine.setting.setting_file import SEARCH_ONLY, Setting, knobs_to_write
from harness import ResultsError
from harness.analysis.pareto import Analysis
from harness.decisions.recommend import Choice, named, recommended, wishes_of
from harness.study.manifest import JUDGE

from .commands import commands_of, setting_of
from .facts import facts_of
from .figures import figures_of

RECOMMENDED = ("fastest_lossless", "fastest", "least_memory", "fastest_in_memory")
MACHINE = {
    "device": "device",
    "backend": "backend",
    "cpu": "cpu",
    "cores": "cores",
    "machine_memory_gb": "memory_gb",
    "os": "os",
}
VERSIONS = {"headrace_version": "headrace", "mlx": "mlx", "mlx_lm": "mlx_lm", "python": "python", "commit": "commit"}
MODEL = {"model": "name", "model_fingerprint": "fingerprint", "architecture": "architecture"}
PROTOCOL = ("warm_up_tokens", "timed_tokens", "page_cache", "state")


def settings_of(folder: Path, found: Analysis, choices: Sequence[Choice]) -> dict[str, Setting]:
    """The setting of each recommendation that some trial meets, by name."""
    return {
        name: _setting(folder, found, point, name, choice.rule, choice.confirmed, choice)
        for name, point, choice in named(found, choices)
        if choice is not None and point is not None
    }


def picked(folder: Path, found: Analysis, pick: str) -> Setting:
    """A recommended setting, `default` or `reference`. Raises `ResultsError` if there is none of this name."""
    choices = recommended(found, **wishes_of(folder))
    every = {name: (point, choice) for name, point, choice in named(found, choices)}
    known = [*RECOMMENDED, "default", "reference"]
    if pick not in known:
        raise ResultsError(f"{pick} is not a recommended setting; {did_you_mean(pick, known)}")
    if pick not in every:
        if choices:
            raise ResultsError(f"{folder.name} has no {pick}; give its search recommend.memory_gb=GB to have one")
        raise ResultsError(f"{folder.name} has no measured setting; start its search again, or give one with --trial N")
    point, choice = every[pick]
    if point is None:
        why = choice.reason if choice is not None else "it was not measured"
        raise ResultsError(f"{folder.name} has no {pick}: {why}; give another name with --pick, or --trial N")
    if choice is not None:
        return _setting(folder, found, point, pick, choice.rule, choice.confirmed, choice)
    rule = "first anchor of the search" if pick == "default" else "every expert resident"
    return _setting(folder, found, point, pick, rule, _is_confirmed(found, int(point["trial"])), pick)


def of_trial(folder: Path, found: Analysis, trial: int) -> Setting:
    """The setting of a trial. Raises `ResultsError` for a trial that does not exist or has no figures."""
    rows = found.df[found.df["trial"] == trial]
    if rows.empty:
        numbers = found.df["trial"]
        raise ResultsError(f"{folder.name} has no trial {trial}; its trials are {numbers.min()} to {numbers.max()}")
    every = found.estimates
    if trial not in every.index:
        last = rows.iloc[-1]
        reason = f"{last['status']}: {last['status_reason']}" if isinstance(last["status_reason"], str) else last["status"]
        raise ResultsError(f"trial {trial} of {folder.name} has no figures ({reason}); choose one that was measured")
    sure = _is_confirmed(found, trial)
    return _setting(folder, found, every.loc[trial], f"trial {trial}", f"trial {trial} of the study", sure, trial)


def _is_confirmed(found: Analysis, trial: int) -> bool:
    """Whether a trial is a confirmed member of the front."""
    every = found.standings
    return bool(trial in every.index and every.loc[trial, "standing"] == "front" and every.loc[trial, "confirmed"])


def _setting(
    folder: Path, found: Analysis, point: Mapping[str, Any], name: str, rule: str, confirmed: bool, what: Choice | int | str
) -> Setting:
    trial, facts = int(point["trial"]), facts_of(folder)
    row = found.df[(found.df["trial"] == trial) & (found.df["status"] == "ok")].iloc[-1]
    search_only: dict[str, Any] = {}
    if isinstance(gone := point["removed_knobs"], str):  # a reader of the file refuses it with the reason of the removal
        used = _known(point, {n: n for n in Knobs.names() if n not in SEARCH_ONLY})
        used |= dict(part.split("=", 1) for part in gone.split())
    else:
        used, search_only = knobs_to_write(setting_of(point, search=True))
    judge = {"file": f"../{JUDGE}"} if (folder / JUDGE).exists() else {}
    return Setting(
        name=name, rule=rule, study=str(row["study"]) if isinstance(row["study"], str) else folder.name, trial=trial,
        confirmed=confirmed, runs=int(point["runs"]),
        model=({"path": facts.model} if facts.model else {}) | _known(row, MODEL), engine=facts.foreign(row), knobs=used,
        search_only=search_only, machine=_machine(row), versions=_known(row, VERSIONS),
        protocol=_known(row, dict(zip(PROTOCOL, PROTOCOL, strict=True))),
        eval_texts=judge | _known(row, {"eval_texts": "name", "eval_fingerprint": "fingerprint"}),
        measured=figures_of(found, point), commands=commands_of(folder, what, {**row, **point}),
    )  # fmt: skip


def _machine(row: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the run's machine, and the chunk that `prefill_chunk=auto` stood for on it."""
    chosen = {"prefill_chunk_used": "prefill_chunk"} if row["prefill_chunk"] == WORDS["prefill_chunk"]["auto"] else {}
    return _known(row, {**MACHINE, **chosen})


def _known(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The values of a row under the names of a setting file, without nulls."""
    values = {new: row[old] for old, new in names.items()}
    return {new: _integer(value) for new, value in values.items() if value is not None and value == value}


def _integer(value: Any) -> Any:
    """A whole number that pandas has made a float, because another row has none."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
