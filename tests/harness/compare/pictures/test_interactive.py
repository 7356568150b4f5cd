"""Interactive pictures: the same points as in the static ones, each study once in the legend."""

from __future__ import annotations

from harness.compare.identity import identity
from harness.compare.pictures.bits import bits
from harness.compare.pictures.interactive import draw_interactive
from harness.compare.pictures.planes import planes
from harness.compare.pictures.rows import before_after, recommended
from harness.compare.sides import Side


def test_traces_have_the_points_of_the_picture(sides: list[Side]) -> None:
    pairs = [(sides[1], identity(*sides))]
    for picture in (planes(sides), recommended(sides), bits(sides), before_after(sides[0], pairs)):
        figure = draw_interactive(picture)
        wanted = sum(len(s.x) for panel in picture.panels for s in panel.series if s.kind == "points")
        assert sum(len(t.x) for t in figure.data if t.type == "scatter" and t.mode == "markers") == wanted
        shown = [t.name for t in figure.data if t.showlegend]
        assert len(shown) == len(set(shown)) and shown
