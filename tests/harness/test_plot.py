"""The plot: made for any rows that have a front, and its labels keep off the points."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from test_front import FIVE, trials

from harness import ResultsError
from harness.plot import plot_front

CASES = {
    "five": FIVE,
    "one": trials((1, 1, 3)),
    "equal": trials((1, 1, 3), (1, 1, 3)),
    "outlier": trials((10, 1, 4), (8, 0.5, 4.5), (7, 0.6, 1e6)),
    "wide front": trials((100, 1, 900), (8, 0.5, 4.5), (50, 0.9, 60)),
    "reference": trials((20, 3, 4), (10, 1, 4), (12, 2, 5), origin=["reference", "anchor", "sampler"]),
}


@pytest.mark.parametrize("name", CASES)
def test_plot(name: str, tmp_path: Path) -> None:
    path = plot_front(CASES[name], tmp_path / "front.png")
    picture = matplotlib.image.imread(path)
    assert picture.shape == (960, 1440, 4)
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 50
    assert [p.name for p in tmp_path.iterdir()] == ["front.png"]


def test_judges_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="rows of 2 judges"):
        plot_front(trials((1, 1, 1), (2, 2, 2), judge=["a", "b"]), tmp_path / "front.png")
