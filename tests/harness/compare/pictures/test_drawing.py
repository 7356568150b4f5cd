"""Drawing: a notebook's output holds the image and plotly's figure, or the image alone."""

from __future__ import annotations

import json

from harness.compare.pictures.drawing import PLOTLY, Drawing
from harness.compare.pictures.rows import recommended
from harness.compare.sides import Side


def test_an_output_holds_both(sides: list[Side]) -> None:
    picture = recommended(sides)
    both, image = Drawing(picture)._repr_mimebundle_(), Drawing(picture, static=True)._repr_mimebundle_()
    assert both["image/png"].startswith(b"\x89PNG") and set(image) == {"image/png", "text/plain"}
    assert json.loads(json.dumps(both[PLOTLY]))["data"]
