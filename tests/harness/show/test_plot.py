"""The plots: made for any rows, the same file for the same rows, and no label covers a point or another label."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from synthetic import FIVE, trials

from harness import ResultsError
from harness.analysis.pareto import front
from harness.results.rows import read_trials
from harness.show.plot import MARKS, STYLE, draw_front, plot_front, plot_night

PUBLISHED = Path(__file__).parents[3] / "results" / "published"
LOSSLESS = trials(*((10 + 3 * i, 1 + 0.1 * i, 17.08) for i in range(12)), origin=["anchor", *["sampler"] * 11])
CASES = {
    "five": FIVE,
    "one": trials((1, 1, 3)),
    "equal": trials((1, 1, 3), (1, 1, 3)),
    "none": trials(),
    "all failed": FIVE.assign(status="crash"),
    "outlier": trials((10, 1, 4), (8, 0.5, 4.5), (7, 0.6, 1e6)),
    "wide front": trials((100, 1, 900), (8, 0.5, 4.5), (50, 0.9, 60)),
    "wide speed": trials((100, 1, 4), (0.5, 0.1, 4)),
    "reference": trials((20, 3, 4), (10, 1, 4), (12, 2, 5), origin=["reference", "anchor", "sampler"]),
    "one perplexity": LOSSLESS,
    "two objectives": FIVE.assign(objectives="decode_tok_s,peak_memory_gb"),
    "kl, zero for the lossless": LOSSLESS.assign(objectives="decode_tok_s,kl", kl=[0.0] * 8 + [0.01, 0.1, 0.2, 0.3]),
    "ttft alone": FIVE.assign(objectives="ttft_ms,peak_memory_gb", ttft_ms=[9.0, 8, 300, 5, 4]),
    "two speeds": FIVE.assign(objectives="decode_tok_s,ttft_ms,perplexity", ttft_ms=[9.0, 8, 300, 5, 4]),
    "no speed": FIVE.assign(objectives="perplexity,peak_memory_gb"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_front(name: str, tmp_path: Path) -> None:
    df = CASES[name]
    path = plot_front(df, tmp_path / "front.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["front.png", "front.svg"]
    picture = matplotlib.image.imread(path)
    panels = str(df["objectives"].iloc[0]).count(",") if len(df) and df["objectives"].notna().all() else 2
    assert picture.shape[:2] == (896, 160 * (1.5 + 4.9 * panels))
    labels_are_clear_of_points(df)


def test_a_published_study_and_its_labels() -> None:
    df = read_trials(PUBLISHED / "demo_ssd_0.1")
    axes = labels_are_clear_of_points(df)
    assert [ax.get_xlabel().split()[0] for ax in axes] == ["peak_memory_gb", "perplexity"]
    for ax in axes:
        said = {t.get_text() for t in ax.texts}
        assert "reference" in said and "default (1)" in said and any(t.startswith("knee") for t in said)
    best = front(df)
    for x, ax in zip(("peak_memory_gb", "perplexity"), axes, strict=True):
        members = {(row[x], row["decode_tok_s"]) for _, row in best.iterrows()}
        unbeaten = {p for p in members if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in members)}
        line = next(np.asarray(one.get_xydata()) for one in ax.lines if one.get_alpha() == 0.4)
        assert {tuple(p) for p in line} & members == unbeaten
        assert {p for p, _ in line} == {p for p, _ in unbeaten}


def labels_are_clear_of_points(df: pd.DataFrame) -> list[Axes]:
    """Draw; each label lies in the figure, on no point's centre and on no other label."""
    with plt.rc_context(STYLE):
        fig = draw_front(df)
    fig.draw_without_rendering()
    for ax in fig.axes:
        marks = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if hasattr(c, "get_offsets")])
        points = ax.transData.transform(marks[np.isfinite(marks).all(axis=1)])
        boxes = [Text.get_window_extent(t) for t in ax.texts if isinstance(t, Annotation)]
        for box in boxes:
            assert not [p for p in points if box.padded(6).contains(*p)]
            assert fig.bbox.contains(*box.min) and fig.bbox.contains(*box.max)
        assert not [1 for a, b in itertools.combinations(boxes, 2) if Bbox.overlaps(a, b)]
    plt.close(fig)
    return fig.axes


def test_kinds_differ_in_shape_and_not_by_colour_alone() -> None:
    """Two kinds with one marker differ in size or filling, seen in grey."""

    def grey(color: str) -> float:
        return 1.0 if color == "none" else float(np.dot(to_rgb(color), (0.299, 0.587, 0.114)))

    looks = [(m["marker"], grey(m.get("color", m.get("facecolors"))), m["s"]) for m in MARKS.values()]
    for (marker, fill, size), (other, filled, large) in itertools.combinations(looks, 2):
        assert marker != other or abs(fill - filled) > 0.4 or max(size, large) > 2 * min(size, large)


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        df = FIVE.assign(started_at=pd.date_range("2026-01-01", periods=5, freq="min", tz="UTC"), wall_s=9.0)
        plot_front(df, tmp_path / name / "front.png")
        plot_night(df, tmp_path / name / "night.png")
    for kind in ("front.png", "front.svg", "night.png", "night.svg"):
        assert (tmp_path / "a" / kind).read_bytes() == (tmp_path / "b" / kind).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a" / "front.svg").read_bytes()


def test_judges_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="rows of 2 sets of evaluation texts"):
        plot_front(trials((1, 1, 1), (2, 2, 2), eval_fingerprint=["a", "b"]), tmp_path / "front.png")
