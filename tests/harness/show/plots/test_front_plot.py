"""Front plot: drawn for any rows, with titled axes, and no label covers a mark or another label."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from synthetic import FIVE, trials

from harness import ResultsError
from harness.analysis.pareto import front
from harness.results.metrics import OBJECTIVES
from harness.results.rows import read_trials
from harness.show.plots import front_plot
from harness.show.plots.figure import STYLE
from harness.show.plots.front_plot import MARKS, draw_front, plot_front
from harness.show.text import axis

PUBLISHED = Path(__file__).parents[4] / "results" / "published"
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
def test_any_rows_give_a_picture_with_titled_axes_and_free_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    df, drawn = CASES[name], list[Figure]()
    monkeypatch.setattr(front_plot, "draw_front", lambda rows: drawn.append(draw_front(rows)) or drawn[0])
    path = plot_front(df, tmp_path / "front.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["front.png", "front.svg"]
    picture = matplotlib.image.imread(path)
    names = str(df["objectives"].iloc[0]).split(",") if len(df) and df["objectives"].notna().all() else list(OBJECTIVES)
    assert picture.shape[:2] == (896, 160 * (1.5 + 4.9 * (len(names) - 1)))
    check_labels(*drawn)
    texts = (tmp_path / "front.svg").read_text()
    for metric in names:  # each objective is the title of an axis, and its direction stands beside it
        assert f"<!-- {axis(metric)}" in texts
    assert (f"{df['study'].iloc[0]}: " in texts) if len(df) else "no trial on the front yet" in texts


@pytest.mark.parametrize("objectives", ["decode_tok_s,peak_memory_gb", "decode_tok_s,peak_memory_gb,perplexity"])
def test_a_long_title_stays_inside_and_above_the_panels(objectives: str) -> None:
    df = FIVE.assign(objectives=objectives, study="kimi_m2max_rehearsal", model="kimi_k2_5 (rehearsal: random weights)")
    fig = draw_front(df.assign(device="NVIDIA H200", drift=0.95))
    try:
        fig.canvas.draw()
        heading, counts = (text.get_window_extent() for text in fig.texts)
        panels = [ax.get_window_extent() for ax in fig.axes]
        assert max(heading.x1, counts.x1) < fig.bbox.x1 and heading.y1 <= fig.bbox.y1
        assert heading.y0 >= counts.y1 and counts.y0 >= max(panel.y1 for panel in panels)
    finally:
        plt.close(fig)


def test_a_published_study() -> None:
    df = read_trials(PUBLISHED / "demo_ssd_0.1")
    with plt.rc_context(STYLE):
        figure = draw_front(df)
    check_labels(figure)
    plt.close(figure)
    axes = figure.axes
    assert [ax.get_xlabel().split()[0] for ax in axes] == ["peak_memory_gb", "perplexity"]
    assert axes[0].get_ylabel() == "decode_tok_s   (higher is better)"
    for ax in axes:
        texts = {t.get_text() for t in ax.texts}
        assert "reference" in texts and "default (1)" in texts and any(t.startswith("knee") for t in texts)
    best = front(df)
    for x, ax in zip(("peak_memory_gb", "perplexity"), axes, strict=True):
        members = {(row[x], row["decode_tok_s"]) for _, row in best.iterrows()}
        unbeaten = {p for p in members if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in members)}
        line = next(np.asarray(one.get_xydata()) for one in ax.lines if one.get_alpha() == 0.4)
        assert {tuple(p) for p in line} & members == unbeaten
        assert {p for p, _ in line} == {p for p, _ in unbeaten}


def check_labels(figure: Figure) -> None:
    """Compare bounding boxes of the renderer: no label meets a mark or a label, and all lie in the figure."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        marks = [box for c in ax.collections if isinstance(c, PathCollection) for box in boxes_of(c)]
        labels = [Text.get_window_extent(t) for t in ax.texts if isinstance(t, Annotation)]
        for label in labels:
            assert not [m for m in marks if Bbox.intersection(label, m)], "a label covers a mark"
            assert figure.bbox.contains(*label.min) and figure.bbox.contains(*label.max)
        assert not [1 for a, b in itertools.combinations(labels, 2) if Bbox.overlaps(a, b)], "two labels overlap"


def boxes_of(marks: PathCollection) -> list[Bbox]:
    """The window extent of each mark, from its centre and its area `s` in square points."""
    centres = marks.get_offset_transform().transform(np.ma.filled(marks.get_offsets(), np.nan))
    half = np.sqrt(marks.get_sizes()[0]) / 2 * marks.get_figure().dpi / 72
    half *= 0.7  # a circle, a diamond and a cross leave the corners of their box free
    return [Bbox([c - half, c + half]) for c in centres if np.isfinite(c).all()]


def test_kinds_differ_in_shape_and_not_by_colour_alone() -> None:
    """Two kinds with one marker differ in size or filling, seen in grey."""

    def grey(color: str) -> float:
        return 1.0 if color == "none" else float(np.dot(to_rgb(color), (0.299, 0.587, 0.114)))

    looks = [(m["marker"], grey(m.get("color", m.get("facecolors"))), m["s"]) for m in MARKS.values()]
    for (marker, fill, size), (other, filled, large) in itertools.combinations(looks, 2):
        assert marker != other or abs(fill - filled) > 0.4 or max(size, large) > 2 * min(size, large)


def test_rows_with_different_evaluation_texts_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="rows of 2 sets of evaluation texts"):
        plot_front(trials((1, 1, 1), (2, 2, 2), eval_fingerprint=["a", "b"]), tmp_path / "front.png")
