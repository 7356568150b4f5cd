"""Rows: the recommended settings of several studies, and the same settings before and after.

Each setting is a row and each metric a panel, so that studies of any number of devices can be read side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.compare.identity import Identity
from harness.compare.settings import Ratio, Shared, pairings, shared
from harness.compare.sides import Side
from harness.results.metrics import METRICS, SHORT
from harness.show.text import axis

from .panel import Panel, Picture, Series, look
from .planes import hover, title_of

STEP = 0.62  # of a row, shared by the studies
MOST_ROWS = 30


def recommended(sides: Sequence[Side]) -> Picture:
    """The recommended settings, the default and the reference of each study: figures with 95 % intervals."""
    base = sides[0]
    names = [name for name, _, _ in base.named]
    metrics = [n for n in base.metrics if all(n in side.metrics for side in sides)]
    panels = tuple(
        Panel(
            SHORT[n], axis(n), rows=tuple(names),
            series=tuple(one for i, side in enumerate(sides) for one in _marks(side, i, len(sides), names, n)),
        ) for n in metrics
    )  # fmt: skip
    note = "bars: 95 % intervals from the noise between runs; hollow: not confirmed"
    return Picture("Recommended settings by study and device", panels, note, 1.9 + 0.42 * len(names), shared_rows=True)


def _marks(side: Side, i: int, count: int, names: Sequence[str], metric: str) -> Iterator[Series]:
    """The settings of one study, confirmed ones (and controls) filled, unconfirmed ones hollow."""
    places = {name: k for k, name in enumerate(names)}
    shift = STEP * ((i + 0.5) / count - 0.5)
    for filled in (True, False):
        some = [
            (places[name], p) for name, p, choice in side.named
            if p is not None and name in places and p[metric] == p[metric] and (not choice or choice.confirmed) == filled
        ]  # fmt: skip
        ends = np.array([[p[f"{metric}_{end}"] for _, p in some] for end in ("low", "high")], float).reshape(2, -1)
        if some:
            yield Series(
                "points", title_of(side), look(i), np.array([p[metric] for _, p in some], float),
                np.array([k + shift for k, _ in some], float), x_ends=ends, text=tuple(hover(side, p) for _, p in some),
                legend=filled, filled=filled,
            )  # fmt: skip


def before_after(base: Side, others: Sequence[tuple[Side, Identity]], metric: str = "decode_tok_s") -> Picture:
    """The ratios of every setting that a later study has in common with the base, one panel a study, the largest first."""
    panels = []
    for i, (side, known) in enumerate(others, 1):
        both, named = shared(base, side, known), pairings(base, side, known)
        names = {(int(p.base["trial"]), int(p.other["trial"])): p.name for p in named
                 if p.same_setting and p.base is not None and p.other is not None}  # fmt: skip
        panels.append(_ratios(base, side, i, metric, both, names))
    word = "faster" if METRICS[metric] == "maximize" else "more"
    note = f"ratio of {metric} with its 95 % interval; right of the line: {word} than in {base.name}"
    height = 2.0 + 0.2 * max((len(panel.rows) for panel in panels), default=1)
    return Picture(f"The same settings, against {base.name}", tuple(panels), note, height)


def _ratios(base: Side, side: Side, i: int, metric: str, both: Shared, names: dict[tuple[int, int], str]) -> Panel:
    some: list[tuple[str, Ratio, str]] = []
    for a, b, found in both.pairs:
        if metric in found:
            title = f"trial {a}" if a == b else f"trials {a}, {b}"
            title += f" ({names[a, b]})" if (a, b) in names else ""
            some.append((title, found[metric], hover(base, base.measured.loc[a])))
    some.sort(key=lambda one: -one[1].log)
    some = some[:MOST_ROWS]
    if metric in both.means:
        some.append(("mean of all", both.means[metric], f"mean of {len(both.pairs)} settings"))
    ends = np.array([ratio.limits() for _, ratio, _ in some], float).reshape(-1, 2).T
    marks = Series(
        "points", title_of(side), look(i), np.array([ratio.middle for _, ratio, _ in some]), np.arange(0.0, len(some)),
        x_ends=ends, text=tuple(text for _, _, text in some), legend=True,
    )  # fmt: skip
    return Panel(f"{side.name} / {base.name}", f"ratio of {metric}", series=(marks,), rows=tuple(t for t, _, _ in some),
                 line_at=1.0)  # fmt: skip
