"""Metrics: the figures that a study can optimise or constrain, with their directions, units and noise.

All of it follows from the fields of `engine.Measurement`, so a figure is declared once.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from engine import Measurement
from harness import ResultsError

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["maximize", "minimize"]
FIGURES = {f.name: f.metadata for f in dataclasses.fields(Measurement) if f.metadata}
METRICS: dict[str, Direction] = {name: figure["better"] for name, figure in FIGURES.items() if figure["better"]}
SHORT = {name: figure["short"] for name, figure in FIGURES.items() if figure["short"]}  # name and unit in a table
SPEEDS = tuple(name for name in METRICS if FIGURES[name]["speed"])  # these vary from run to run
PRIOR_NOISE = {name: FIGURES[name]["noise"] for name in METRICS}  # relative standard deviation of a run, before any repeat
QUALITY = tuple(name for name, figure in FIGURES.items() if figure["quality"])  # these depend on the lossy knobs only
CONSTRAINABLE = (*METRICS, "json_valid")
OBJECTIVES = {name: METRICS[name] for name in ("decode_tok_s", "peak_memory_gb", "perplexity")}  # the default objectives


def objectives_of(df: pd.DataFrame) -> dict[str, Direction]:
    """The objectives of a frame of rows. Raises `ResultsError` if its rows have different objectives."""
    given = set(df["objectives"].dropna().unique()) if "objectives" in df else set()
    if len(given) > 1:
        raise ResultsError(
            f"rows with different objectives ({'; '.join(sorted(given))}) are not comparable; keep the rows of one set"
        )
    return {name: METRICS[name] for name in given.pop().split(",")} if given else dict(OBJECTIVES)
