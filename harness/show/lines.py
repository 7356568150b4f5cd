"""Lines: what a study's rows show in sentences, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.checkpoint.store.rehearsal import ABOUT
from harness.analysis.estimates import noise, suspects
from harness.analysis.hypervolume import contributions
from harness.analysis.pareto import Analysis, Rows
from harness.analysis.runs.forecasts import check_forecasts
from harness.decisions.recommend import Choice, compared, named
from harness.results.metrics import SHORT

from .text import duration

if TYPE_CHECKING:
    import pandas as pd

SAVED_BY = {
    "infeasible": "pruned: out of memory by arithmetic",
    "dominated": "pruned: speed bound below the front",
    "stopped": "stopped early",
}


def reasons(found: Analysis, choices: Sequence[Choice]) -> list[str]:
    """For each recommended setting: its rule, its trial, the comparison with the default, and its confirmation."""
    rows, lines = named(found, choices), []
    default = next(point for name, point, _ in rows if name == "default")
    width = max(len(c.name) for c in choices)
    for name, point, choice in rows:
        if choice is None:
            continue
        lines.append(f"{name:{width}}  {choice.rule}")
        if point is None:
            lines.append(f"{'':{width}}  not met: {choice.reason}")
            continue
        than = "the default was not measured" if default is None else compared(found, point, default)
        sure = confirmation(choice, int(point["fresh_runs"]), found.runs)
        lines.append(f"{'':{width}}  met by trial {choice.trial}: {than}; {sure}")
    return lines


def confirmation(choice: Choice, fresh: int, runs: int) -> str:
    """Whether a recommended setting is confirmed, and if not, what is missing."""
    if choice.confirmed:
        return "confirmed"
    if fresh < runs:
        return f"not confirmed: {fresh} of {runs} fresh runs"
    rivals = " or ".join(f"trial {t}" for t in choice.rivals[:2])
    return f"not confirmed: with probability {choice.doubt:.0%} the setting is truly {rivals}"


def rehearsal(df: pd.DataFrame) -> list[str]:
    """A line if rows were measured on a rehearsal, whose mark is in their mode."""
    n = int(df["mode"].astype("string").str.contains(ABOUT, regex=False, na=False).sum())
    return (
        [f"{ABOUT} ({n} of {len(df)} runs): speed and memory are those of the model's shape, quality is unknown"]
        if n
        else []
    )


def violations(df: pd.DataFrame) -> list[str]:
    """The number of trials that violate a constraint, and the constraint violated most often."""
    first = df[df["run"].fillna(0) == 0]
    if not (n := int((first["feasible"] == False).sum())):  # noqa: E712 (null is not False)
        return []
    violated = first["violated"].dropna().mode()
    return [f"{n} violate a constraint" + (f", most often {violated.iloc[0]}" if len(violated) else "")]


def undecided(every: pd.DataFrame) -> list[str]:
    """The trials of `standings` that are undecided between the front and near rivals."""
    left = every.index[every["standing"] == "undecided"]
    if not len(left):
        return []
    names = ", ".join(str(t) for t in sorted(left)[:12]) + (", ..." if len(left) > 12 else "")
    return [f"undecided, not on the front because of near rivals: {names}; more confirmation runs decide (confirm.share)"]


def contribution(rows: Rows) -> list[str]:
    """The contribution of each origin: its trials on the front, and the hypervolume that would be lost without them."""
    found = contributions(rows)
    if len(found) < 2 or found["lost"].isna().any():
        return []
    return [
        "contribution by origin:",
        *(
            f"  {origin:9} {int(c['on_front']):3} of {int(c['trials']):4} on the front ({c['on_front'] / c['trials']:5.1%}),"
            f" {c['lost']:6.1%} of the hypervolume ({c['lost'] / c['trials']:.2%} a trial)"
            for origin, c in found.iterrows()
        ),
    ]


def saved(df: pd.DataFrame) -> list[str]:
    """The time saved, by reason."""
    if not (found := savings(df)):
        return []
    parts = ", ".join(f"{duration(seconds)} {reason}" for reason, seconds, _ in found)
    total = sum(seconds for _, seconds, _ in found)
    return [f"saved {duration(total)} of {duration(total + df['wall_s'].sum())}: {parts}"]


def savings(df: pd.DataFrame) -> list[tuple[str, float, int]]:
    """(reason, seconds saved, runs concerned) of every reason to save time that applied."""
    spared = df["saved_s"].fillna(0).astype(float)
    some = spared[spared > 0]
    why = df["status"].map(SAVED_BY).fillna("quality reused")
    if "scoring_stopped" in df:
        why = why.mask(df["scoring_stopped"].notna() & df["quality_from_trial"].isna(), "scoring ended early")
    groups = some.groupby(why)
    return [(str(reason), float(seconds.sum()), len(seconds)) for reason, seconds in groups]


def forecast(df: pd.DataFrame) -> list[str]:
    """How good the forecasts of speed were."""
    found = check_forecasts(df)
    return [] if found is None else [str(found)]


def foreign_limits(df: pd.DataFrame) -> list[str]:
    """The names of devices whose limits held on another machine."""
    return sorted(df["device_profile"].dropna().unique()) if "device_profile" in df else []


def health(df: pd.DataFrame) -> list[str]:
    """Limits of another machine, the noise between runs, the drift of the sentinel, and trials that are still suspect."""
    lines, found = [], noise(df)
    for name in foreign_limits(df):
        lines.append(f"limits of device={name}, which is not the machine that measured: its speeds are not those of {name}")
    known = [f"{SHORT[m]} {row['sd']:.1%}" for m, row in found.iterrows() if row["runs"] and row["sd"] > 0]
    if known:
        lines.append(f"noise from run to run: {', '.join(known)} ({int(found['runs'].max())} runs)")
    drift = df["drift"].dropna()
    if len(drift):
        n = int(df["drift_since"].notna().sum())
        lines.append(
            f"sentinel speed {drift.min():.0%} to {drift.max():.0%} of the earlier median in {len(drift)} runs"
            + (f", {n} beyond the limit" if n else "")
        )
    if waiting := suspects(df):
        lines.append(f"suspect, to be measured again: trial {', '.join(map(str, waiting))}")
    return lines
