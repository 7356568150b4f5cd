"""Rows: recommended settings with their intervals, and the same settings before and after."""

from __future__ import annotations

import numpy as np
import pytest

from harness.compare.identity import identity
from harness.compare.pictures.rows import before_after, recommended
from harness.compare.sides import Side


def test_recommended_settings_have_a_row_each(sides: list[Side]) -> None:
    picture = recommended(sides)
    assert [panel.title for panel in picture.panels] == ["tok/s", "GB", "ppl"]
    panel = picture.panels[0]
    assert panel.rows == ("fastest_lossless", "fastest", "least_memory", "default", "reference")
    default = {side.name: side.measured.loc[1, "decode_tok_s"] for side in sides}
    drawn = np.concatenate([s.x for s in panel.series])
    assert all(np.isclose(drawn, value).any() for value in default.values())
    ends = panel.series[0].x_ends
    assert ends is not None and (ends[0] <= panel.series[0].x).all() and (panel.series[0].x <= ends[1]).all()


def test_before_and_after_is_sorted_and_ends_with_the_mean(sides: list[Side]) -> None:
    base, other = sides
    (panel,) = before_after(base, [(other, identity(base, other))]).panels
    (marks,) = panel.series
    assert len(panel.rows) == len(marks.x) == 15 and panel.rows[-1] == "mean of all"
    assert (np.diff(marks.x[:-1]) <= 0).all() and marks.x[-1] == pytest.approx(1.5, rel=0.03)
    assert any(name.endswith("(default)") for name in panel.rows)
