"""Labels: place names and numbers beside points, clear of all marks and of each other."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import matplotlib.text
import numpy as np
from matplotlib.axes import Axes

MARK = 7.0  # half the extent of the largest mark, points


class Label(NamedTuple):
    """A text for the point (x, y) in data coordinates. A required one is drawn even without free space."""

    text: str
    x: float
    y: float
    color: str
    required: bool


def place(ax: Axes, labels: list[Label], points: np.ndarray, lines: list[np.ndarray]) -> None:
    """Draw the labels for which there is space, in their order, each with a leader line if it is not beside its point.

    points: (n, 2) centres of all marks; lines: corners of the drawn lines, (m, 2) each; both in data coordinates. The
    layout of the figure must be final.
    """
    marks = ax.transData.transform(points)
    pieces = [np.linspace(a, b, 30) for line in lines for a, b in itertools.pairwise(ax.transData.transform(line))]
    along, taken = np.concatenate([np.empty((0, 2)), *pieces]), list[np.ndarray]()
    for label in labels:
        note: Any = ax.annotate(
            label.text, (label.x, label.y), (0, 0), textcoords="offset points", fontsize=9 if label.required else 7.5,
            color=label.color, ha="center", va="center", zorder=7,
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.6, "shrinkB": 6},
        )  # fmt: skip
        found = _free_space(ax, note, marks, along, taken)
        if found is None and not label.required:
            note.remove()
            continue
        offset, box, leader = found or (np.array([0.0, 26.0]), np.zeros(4), True)
        taken.append(box)
        note.set_position(offset)
        note.arrow_patch.set_visible(leader)


def _free_space(
    ax: Axes, note: Any, points: np.ndarray, line: np.ndarray, taken: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """The best place for a label: inside the panel, on no mark and no other label, near its point, on little of `line`.

    Returns its offset in points, its box in pixels, and whether it needs a leader line; None if there is no free place.
    """
    text = matplotlib.text.Text.get_window_extent(note)
    per_point = ax.figure.dpi / 72
    half = np.array([text.width, text.height]) / 2 + 2 * per_point
    at, frame = ax.transData.transform(note.xy), ax.get_window_extent()
    best: tuple[float, np.ndarray, np.ndarray, bool] | None = None
    margin = np.array([-1, -1, 1, 1]) * MARK * per_point
    for distance, angle in itertools.product((10, 17, 26, 40, 60, 85, 115), np.radians(np.arange(0, 360, 15))):
        way = np.array([np.cos(angle), np.sin(angle)])
        centre = at + way * (distance * per_point + half * np.abs(way))
        box = np.concatenate([centre - half, centre + half])
        if not (frame.x0 < box[0] and box[2] < frame.x1 and frame.y0 < box[1] and box[3] < frame.y1 + 12 * per_point):
            continue
        if _within(points, box + margin).any() or any((box[:2] < t[2:]).all() and (t[:2] < box[2:]).all() for t in taken):
            continue
        nearest = points[np.hypot(*(points - centre).T).argmin()]
        leader = distance > 20 or not np.allclose(nearest, at)
        cost = distance + 4.0 * _within(line, box).sum() + 12.0 * leader
        if best is None or cost < best[0]:
            best = cost, (centre - at) / per_point, box, leader
    return None if best is None else best[1:]


def _within(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.asarray(((points > box[:2]) & (points < box[2:])).all(axis=1))
