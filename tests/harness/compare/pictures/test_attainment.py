"""Attainment: surfaces of known draws, the band's order, and one line without moocore."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from harness import ResultsError
from harness.compare.pictures.attainment import PERCENTILES, best_at, surfaces
from harness.compare.sides import Side

pytest.importorskip("moocore", reason="moocore is in the extra `notebooks`")


def test_surfaces_are_the_quantiles_of_the_best_speed(sides: list[Side]) -> None:
    side = sides[0]
    found = surfaces(side, "peak_memory_gb", "decode_tok_s")
    at = np.array([10.0])  # more memory than any setting has: all draws count
    best = side.drawn[:, :, side.objectives.index("decode_tok_s")].max(axis=1)
    low, middle, high = (best_at(found[p], at, "peak_memory_gb", "decode_tok_s")[0] for p in PERCENTILES)
    assert low > middle > high  # 25 of 100 draws attain more than 75 of them do
    for value, share in ((low, 0.75), (middle, 0.5), (high, 0.25)):
        assert value == pytest.approx(np.quantile(best, share), rel=0.005)


def test_a_surface_is_a_staircase_in_both_directions() -> None:
    corners = np.array([[1.0, 10.0], [2.0, 30.0]])
    at = np.array([0.5, 1.0, 1.5, 2.0, 9.0])
    assert best_at(corners, at, "peak_memory_gb", "decode_tok_s").tolist()[1:] == [10, 10, 30, 30]
    assert np.isnan(best_at(corners, at, "peak_memory_gb", "decode_tok_s")[0])
    fast_first = np.array([[30.0, 2.0], [10.0, 1.0]])  # x is a speed: the best comes first
    assert best_at(fast_first, np.array([40.0, 30.0, 20.0, 10.0]), "decode_tok_s", "peak_memory_gb").tolist()[1:] == [
        2,
        2,
        1,
    ]


def test_without_moocore_one_line_says_what_to_install(sides: list[Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moocore", None)
    with pytest.raises(ResultsError, match=r"^moocore is not installed.*pip install 'headrace\[notebooks\]'$"):
        surfaces(sides[0], "peak_memory_gb", "decode_tok_s")
