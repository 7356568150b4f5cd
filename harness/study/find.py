"""Find a study that a command line names: by its folder, or by its name under results/."""

from __future__ import annotations

from pathlib import Path

from engine.errors import did_you_mean
from engine.system.shipped import ROOT
from harness import ResultsError


def find(name: str) -> Path:
    """The folder of the study `name`, a folder or a name under results/. Raises `ResultsError` if there is none."""
    places = [Path(name).expanduser(), Path("results") / name, ROOT / "results" / name]
    for place in places:
        if any((place / sign).exists() for sign in ("manifest.json", "state.json", "trials", "trials.parquet")):
            return place.absolute()
    known = sorted({p.parent.name for place in (Path("results"), ROOT / "results") for p in place.glob("*/manifest.json")})
    hint = did_you_mean(name, known) if known else "start one: python -m harness.search"
    raise ResultsError(f"{name} is neither a study's folder nor the name of a study under results/; {hint}")
