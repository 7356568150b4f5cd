"""Static pictures: every kind of series is drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt

from harness.compare.pictures.bits import bits
from harness.compare.pictures.planes import planes
from harness.compare.pictures.rows import recommended
from harness.compare.pictures.static import draw_static
from harness.compare.sides import Side


def test_panels_titles_and_legends(sides: list[Side]) -> None:
    for picture in (planes(sides), recommended(sides), bits(sides)):
        figure = draw_static(picture)
        assert [ax.get_title(loc="left") for ax in figure.axes] == [panel.title for panel in picture.panels]
        assert picture.title in [text.get_text() for text in figure.texts]
        names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert names == ["a (M2 Max)", "b (M2 Max, 0.3 GB/s)"]
        plt.close(figure)
