"""Sides: the studies of a comparison, each with its estimates, its recommended settings and draws of its front.

All studies follow the rules of the first one (`recommend` and `confirm` in its manifest), so that a name stands for the same
rule everywhere.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.system.strict_json import from_json
from harness import ResultsError
from harness.analysis.counts import count
from harness.analysis.estimates import noise
from harness.analysis.pareto import WITHIN, Duels, measured, standings
from harness.decisions.recommend import Named, named, recommended, speed_of, wishes_of
from harness.results.metrics import METRICS, OBJECTIVES, objectives_of
from harness.results.rows import read_trials
from harness.study.titles import FACTS, title

if TYPE_CHECKING:
    import pandas as pd

RULES = ("runs", "within", "error")
DRAWS = 400  # of a front: enough for the ends of a 95 % interval


@dataclass(frozen=True)
class Side:
    """A study of a comparison. `name` is unique in it, `letter` stands for it in tables."""

    name: str
    letter: str
    folder: Path
    df: pd.DataFrame
    wishes: Mapping[str, Any]
    own_wishes: Mapping[str, Any]
    manifest: Mapping[str, Any]
    seed: int = 0

    @property
    def title(self) -> str:
        """Model, device and machine in one line."""
        return title({name: self.df[name] for name in FACTS})

    @property
    def counts(self) -> str:
        """`24 trials (ok), reference measured; 12 confirmations`."""
        return str(count(self.df))

    @functools.cached_property
    def objectives(self) -> list[str]:
        return list(objectives_of(self.df))

    @functools.cached_property
    def metrics(self) -> list[str]:
        """The objectives, and those of speed, memory and perplexity that were measured."""
        return [*self.objectives, *(n for n in OBJECTIVES if n not in self.objectives and self.df[n].notna().any())]

    @functools.cached_property
    def rules(self) -> dict[str, Any]:
        return {name: self.wishes[name] for name in RULES if name in self.wishes}

    @functools.cached_property
    def noise(self) -> pd.DataFrame:
        return noise(self.df)

    @functools.cached_property
    def measured(self) -> pd.DataFrame:
        return measured(self.df)

    @functools.cached_property
    def standings(self) -> pd.DataFrame:
        return standings(self.df, **self.rules)

    @functools.cached_property
    def front(self) -> pd.DataFrame:
        return self.standings[self.standings["standing"] == "front"]

    @functools.cached_property
    def named(self) -> list[Named]:
        """The recommended settings, the default and the reference."""
        return named(self.df, recommended(self.df, **self.wishes))

    @functools.cached_property
    def drawn(self) -> np.ndarray:
        """Draws of the front's true figures: (draws, points of `front`, objectives).

        Speeds come from their posterior, other metrics from their estimates and standard errors. The draws of two studies
        are independent.
        """
        points, names = self.measured, self.objectives
        duels = Duels(points, names, self.rules.get("within", WITHIN))
        rng = np.random.default_rng([7, self.seed])
        at = points.index.get_indexer(self.front.index)
        drawn = np.empty((DRAWS, len(at), len(names)))
        order = rng.integers(len(duels.drawn), size=DRAWS)
        speeds = iter(range(duels.drawn.shape[2]))
        for k, (name, fast) in enumerate(zip(names, duels.fast, strict=True)):
            if fast:
                sign = -1.0 if METRICS[name] == "maximize" else 1.0
                drawn[:, :, k] = np.exp(sign * duels.drawn[:, :, next(speeds)][order][:, at])
            else:
                value = self.front[name].to_numpy(float)
                se = self.front[f"{name}_rel_se"].fillna(0).to_numpy(float)
                drawn[:, :, k] = value * np.exp(se * rng.standard_normal((DRAWS, len(at))))
        return drawn


def read_sides(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Side]:
    """The studies in `folders`, the base first. names: of each study; by default from the paths. Raises `ResultsError` for
    damaged rows and for a study without figures."""
    wishes = wishes_of(folders[0])
    sides = []
    for i, (folder, name) in enumerate(zip(folders, names or names_of(folders), strict=True)):
        side = Side(name, letter(i), folder, read_trials(folder), wishes, wishes_of(folder), _manifest(folder), i)
        if side.measured.empty:
            raise ResultsError(f"{name} has no feasible trial with figures; run its search first, or leave it out")
        sides.append(side)
    return sides


def letter(i: int) -> str:
    """A, B ... Z, then A2, B2 ..."""
    turn, at = divmod(i, len(string.ascii_uppercase))
    return string.ascii_uppercase[at] + (str(turn + 1) if turn else "")


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ; a folder that is given again gets a number."""
    parts = [folder.absolute().parts for folder in folders]
    names: list[str] = []
    for mine in parts:
        others = [other for other in parts if other != mine]
        n = next((n for n in range(1, len(mine) + 1) if all(other[-n:] != mine[-n:] for other in others)), len(mine))
        name = "/".join(mine[-n:])
        again = sum(one == name or one.startswith(f"{name} #") for one in names)
        names.append(f"{name} #{again + 1}" if again else name)
    return names


def shared_speed(sides: Sequence[Side]) -> str:
    """The speed that the recommendations of all sides compare, decode_tok_s if they differ."""
    found = {speed_of(side.objectives) for side in sides}
    return found.pop() if len(found) == 1 else "decode_tok_s"


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a study's folder; empty without one, as after a merge."""
    path = folder / "manifest.json"
    try:
        found = from_json(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise ResultsError(f"{path} is damaged; restore it from a backup") from e
    if not isinstance(found, dict):
        raise ResultsError(f"{path} is damaged; restore it from a backup")
    return found
