"""The end of a study: its front as a table, the knee marked, the plots, what the night was like and what it was worth.

    python -m harness.report demo
    python -m harness.report results/demo other

A study is a folder, or its name under results/. Exit status: 0, or 2 for a mistake or damaged files (one line on stderr).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from engine import HeadraceError

from .columns import NOT_RUN, objectives_of
from .counts import count
from .find import find
from .front import candidates, front, knee, losses, measured, volume
from .plot import plot_front, plot_night
from .points import noise, suspects
from .rows import read_rows, read_trials
from .tables import SHORT, frame, front_table, options

ARMS = ("anchor", "sampler", "random", "proposer")  # who chooses settings


def rules_of(folder: Path) -> dict[str, Any]:
    """The study's own rules of confirmation, for `front`; none where the folder has no manifest that says so."""
    try:
        confirm = json.loads((folder / "manifest.json").read_text())["config"]["confirm"]
        return {name: confirm[name] for name in ("runs", "within", "error")}
    except (OSError, ValueError, KeyError):
        return {}


def report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the front of a study's rows by its own rules, draw its plots and say where rows and plots are."""
    rules = rules_of(folder)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    say = lambda text="": console.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    df = frame(rows)
    say()
    say(str(count(df)))
    for line in violations(df):
        say(line)
    best = front(df, **rules) if len(df) else df
    if len(best):
        say(f"front of {len(best)}, {int(best['confirmed'].sum())} confirmed, best first:")
        say()
        console.print(front_table(df, console.width, **rules))
        say()
        for line in (*undecided(df, **rules), *worth(df, **rules), *saved(df), *health(df)):
            say(line)
        say("to use one:  python -m engine generate --prompt TEXT, with")
        marked = knee(df, **rules)
        for label, point in best.iterrows():
            say(f"  {label:>4}{' ◆' if label == marked else '  '} {options(point)}")
        say()
        say(f"plot  {_short(plot_front(df, folder / 'front.png', **rules))}")
    elif len(df):
        reason = df["status_reason"].dropna().iloc[-1] if df["status_reason"].notna().any() else "no streamed trial yet"
        say(f"no trial on the front yet; the last said: {reason}")
    if len(df) and (night := plot_night(df, folder / "night.png")):
        say(f"night {_short(night)}")
    say(f"rows  {_short(folder / 'trials.parquet')}")


def violations(df: pd.DataFrame) -> list[str]:
    """How many trials are against a constraint, and against which."""
    first = df[df["run"].fillna(0) == 0]
    if not (n := int((first["feasible"] == False).sum())):  # noqa: E712 (null is not False)
        return []
    violated = first["violated"].dropna().mode()
    return [f"{n} against a constraint" + (f", most often {violated.iloc[0]}" if len(violated) else "")]


def undecided(df: pd.DataFrame, **rules: Any) -> list[str]:
    """What may belong to the front, but has rivals too near."""
    some = candidates(df, **rules)
    left = some.index[~some["reported"]]
    if not len(left):
        return []
    names = ", ".join(str(t) for t in sorted(left)[:12]) + (", ..." if len(left) > 12 else "")
    return [f"undecided between near rivals, so not on it: {names}; more confirmation would tell (confirm.share)"]


def worth(df: pd.DataFrame, **rules: Any) -> list[str]:
    """What each arm that chose settings brought: its points on the front, and the hypervolume that would be lost without
    them, each by trial."""
    best, objectives = front(df, **rules), list(objectives_of(df))
    every = measured(df)
    origin = df.sort_values(["trial", "run"]).drop_duplicates("trial").set_index("trial")["origin"]
    values = losses(best, objectives)
    corner = losses(every, objectives).max(0)
    corner = corner + 0.1 * np.abs(corner)
    whole = volume(values, corner)
    arms = [arm for arm in ARMS if (origin == arm).any()]
    if len(arms) < 2 or not whole > 0:
        return []
    lines = ["what each arm was worth, by trial it chose:"]
    for arm in arms:
        trials, mine = int((origin == arm).sum()), (best["origin"] == arm).to_numpy(bool)
        lost = (whole - volume(values[~mine], corner)) / whole
        lines.append(
            f"  {arm:9} {mine.sum():3} of {trials:4} on the front ({mine.sum() / trials:5.1%}),"
            f" {lost:6.1%} of the hypervolume ({lost / trials:.2%} a trial)"
        )
    return lines


def saved(df: pd.DataFrame) -> list[str]:
    """Time that was not spent, by reason."""
    spared = df["saved_s"].fillna(0)
    if not spared.sum() > 0:
        return []
    kinds = df["status"].where(df["status"].isin([*NOT_RUN, "stopped"]), "known")
    names = {"infeasible": "not run (no room)", "dominated": "not run (hopeless)", "stopped": "stopped early"}
    sums = spared.groupby(kinds.map(names).fillna("quality known")).sum()
    parts = ", ".join(f"{_time(s)} {what}" for what, s in sums.items() if s > 0)
    return [f"saved {_time(spared.sum())} of {_time(spared.sum() + df['wall_s'].sum())}: {parts}"]


def health(df: pd.DataFrame) -> list[str]:
    """Noise found, the sentinel's drift, and what is suspect and not yet measured again."""
    lines, found = [], noise(df)
    known = [f"{SHORT[m]} {row['sd']:.1%}" for m, row in found.iterrows() if row["runs"] and row["sd"] > 0]
    if known:
        lines.append(f"noise from run to run: {', '.join(known)} ({int(found['runs'].max())} runs)")
    drift = df["drift"].dropna()
    if len(drift):
        n = int(df["drift_since"].notna().sum())
        lines.append(
            f"sentinel at {drift.min():.0%} to {drift.max():.0%} of itself over {len(drift)} measurements"
            + (f", {n} of them beyond its limit" if n else "")
        )
    if waiting := suspects(df):
        lines.append(f"suspect and not yet measured again: trial {', '.join(map(str, waiting))}")
    return lines


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _short(path: Path) -> str:
    """The path as seen from here, if that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def main(arguments: list[str]) -> int:
    """Report the studies given; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m harness.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="+", help="folder of a study, or its name under results/")
    try:
        for folder in map(find, parser.parse_args(arguments).study):
            read_trials(folder)  # with its checks: damaged files, mixed judges
            report(folder, read_rows(folder))
    except HeadraceError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
