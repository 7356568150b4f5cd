"""Labels: beside their points, clear of marks and of each other; a required one is drawn even without free space."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from harness.show.plots.labels import MARK, Label, place


def placed(points: np.ndarray, required: int = 0, labels: int = 99) -> tuple[list[Bbox], list[str], np.ndarray]:
    """Boxes and texts of the drawn labels, and the points in pixels; the first `required` labels are required."""
    figure, ax = plt.subplots(figsize=(4, 3), dpi=100)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    wanted = [Label(f"label {i}", x, y, "black", i < required) for i, (x, y) in enumerate(points[:labels])]
    place(ax, wanted, points, [])
    notes = [t for t in ax.texts if isinstance(t, Annotation)]
    figure.draw_without_rendering()
    found = [Text.get_window_extent(n) for n in notes], [n.get_text() for n in notes], ax.transData.transform(points)
    plt.close(figure)
    return found


def test_labels_keep_clear_of_marks_and_of_each_other() -> None:
    rng = np.random.default_rng(0)
    boxes, _, points = placed(rng.uniform(0.1, 0.9, (12, 2)))
    assert len(boxes) >= 8
    for box in boxes:
        assert not [p for p in points if box.padded(MARK).contains(*p)]
    assert not [1 for a, b in itertools.combinations(boxes, 2) if Bbox.overlaps(a, b)]


def test_a_lone_label_is_beside_its_point() -> None:
    (box,), _, (point,) = placed(np.array([[0.5, 0.5]]))
    assert np.hypot(*(box.get_points().mean(0) - point)) < 60


def test_without_space_only_required_labels_are_drawn() -> None:
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 40)), -1).reshape(-1, 2)
    _, texts, _ = placed(grid, required=2, labels=3)
    assert texts == ["label 0", "label 1"]
