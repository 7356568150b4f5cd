"""Planes: one panel for each pair of objectives, legends with devices, hover texts, and refused studies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from two_studies import study

from harness import ResultsError
from harness.compare.pictures.planes import planes, title_of
from harness.compare.sides import Side, read_sides


def test_three_planes_with_all_points(sides: list[Side]) -> None:
    picture = planes(sides)
    assert [panel.title for panel in picture.panels] == ["tok/s against GB", "tok/s against ppl", "GB against ppl"]
    for panel in picture.panels:
        for side in sides:
            drawn = [s for s in panel.series if s.kind == "points" and s.name in (side.name, title_of(side))]
            assert sum(len(s.x) for s in drawn) == len(side.measured)
            assert sum(s.legend for s in drawn) == 1
    text = next(s for s in picture.panels[0].series if s.legend).text[0]
    assert "<b>a, trial " in text and "cache_gb=" in text
    assert title_of(sides[1]) == "b (M2 Max, 0.3 GB/s)"


def test_bands_lie_between_their_surfaces(sides: list[Side]) -> None:
    pytest.importorskip("moocore", reason="moocore is in the extra `notebooks`")
    panel = planes(sides).panels[0]
    bands = [s for s in panel.series if s.kind == "band"]
    assert len(bands) == 2 and all(s.y2 is not None and (s.y >= s.y2).all() for s in bands)
    assert panel.x_range and all(s.x[-1] == panel.x_range[1] for s in bands)


def test_without_moocore_there_are_no_bands(sides: list[Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moocore", None)
    with pytest.warns(UserWarning, match="pip install 'headrace"):
        panel = planes(sides).panels[0]
    assert {s.kind for s in panel.series} == {"points"}


def test_studies_of_other_texts_are_refused(sides: list[Side], tmp_path: Path) -> None:
    other = read_sides([study(tmp_path / "c", eval_fingerprint="c" * 16)])
    with pytest.raises(ResultsError, match="rows of 2 sets of evaluation texts"):
        planes([*sides, *other])
