"""Frames: identities, fronts and settings of a comparison as pandas frames, one column or row for each study."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from engine import Knobs
from harness.analysis.pareto import best_under

from .fronts import compare_fronts
from .identity import facts, identity
from .sides import Side

FIGURES = ("trial", "decode_tok_s", "peak_memory_gb", "perplexity")


def identity_frame(sides: Sequence[Side]) -> pd.DataFrame:
    """Counts and the facts that are not the same everywhere: a column for each study."""
    every = {side.name: facts(side) for side in sides}
    differing = [n for n in every[sides[0].name] if len({known[n] for known in every.values()}) > 1]
    columns = {}
    for side in sides:
        counts = {"what": side.title, "trials and runs": side.counts, "on the front": str(len(side.front)),
                  "of it confirmed": str(int(side.front["confirmed"].sum()))}  # fmt: skip
        columns[side.name] = counts | {n: every[side.name][n] for n in differing}
    return pd.DataFrame(columns)


def fronts_frame(sides: Sequence[Side]) -> pd.DataFrame:
    """Each later front against the base's: hypervolume ratio with its 95 % interval, and beaten points on both sides."""
    base, *others = sides
    rows = {}
    for side in others:
        found = compare_fronts(base, side, identity(base, side))
        beaten = {f"of {base.name} beaten": len(found.base_beaten), "of its own beaten": len(found.other_beaten)}
        figures = {"hypervolume ratio": found.ratio, "low": found.low, "high": found.high, "verdict": found.verdict}
        rows[side.name] = {"not compared": found.reason} if found.reason else figures | beaten
    return pd.DataFrame.from_dict(rows, orient="index")


def budget_frame(sides: Sequence[Side], memory_gb: float, max_perplexity: float | None = None) -> pd.DataFrame:
    """The fastest setting of each study within a memory limit: figures, and the knobs off their defaults in any of them.

    Raises `ResultsError` if a study has none.
    """
    found = {side.name: best_under(side.df, memory_gb, max_perplexity) for side in sides}
    default = Knobs().as_dict()
    is_set = lambda value, name: value is not None and value == value and value != default[name]  # noqa: E731
    names = [n for n in Knobs.names() if any(is_set(point[n], n) for point in found.values())]
    return pd.DataFrame({name: point[[*FIGURES, *names]] for name, point in found.items()})
