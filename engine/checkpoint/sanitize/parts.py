"""Parts: the elements of a stored tensor that make up one of mlx-lm's tensors.

Originals keep the gate and up projections in one tensor: one above the other, row by row in turns, or with rows and columns
exchanged. A part describes each of these by a cut along one axis and an order of the axes, independent of the sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """Number `number` of `of` equal parts along `axis` of a stored tensor, with its axes in the order `axes`. The parts
    alternate, or one follows the other."""

    axes: tuple[int, ...]
    axis: int = 0
    of: int = 1
    number: int = 0
    alternate: bool = False

    def take(self, stored: np.ndarray) -> np.ndarray:
        """The part of a stored tensor; a view. Raises `ValueError` if the axis has no such parts."""
        size = stored.shape[self.axis]
        if size % self.of:
            raise ValueError(f"{size} is not a multiple of {self.of}")
        step, length = (self.of, 1) if self.alternate else (1, size // self.of)
        begin = self.number * length
        run = slice(begin, None if self.alternate else begin + length, step)
        return stored[(slice(None),) * self.axis + (run,)].transpose(self.axes)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part of a tensor of shape `stored`."""
        sizes = [n // self.of if axis == self.axis else n for axis, n in enumerate(stored)]
        return tuple(sizes[axis] for axis in self.axes)

    def run(self, stored: tuple[int, ...]) -> int | None:
        """The first item of the part if it is one run of items of a tensor of shape `stored`; None if it is not."""
        apart = self.alternate and stored[self.axis] > self.of
        cut = self.of > 1 and (apart or math.prod(stored[: self.axis]) != 1)
        wide = [axis for axis, size in zip(self.axes, self.shape(stored), strict=True) if size != 1]
        return None if cut or wide != sorted(wide) else self.number * (math.prod(stored) // self.of)


def find_part(places: np.ndarray, stored: tuple[int, ...]) -> Part | None:
    """The part that has these `places`, the numbers of its items in a tensor of shape `stored`. The last axes of `places`
    may be joined. None if no part has them."""
    items = np.arange(math.prod(stored)).reshape(stored)
    for part in _parts(stored):
        taken = part.take(items)
        fits = taken.size == places.size and joined(taken.shape, places.ndim) == places.shape
        if fits and np.array_equal(taken.reshape(-1), places.reshape(-1)):
            return part
    return None


def joined(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The shape with its last axes joined, so that it has at most `axes`."""
    return shape if len(shape) <= axes else (*shape[: axes - 1], math.prod(shape[axes - 1 :]))


def in_items(shape: tuple[int, ...], stored_bytes: int, item_bytes: int) -> tuple[int, ...] | None:
    """A stored shape in items of another size, which join or divide along the last axis."""
    if not shape:
        return (stored_bytes // item_bytes,) if stored_bytes % item_bytes == 0 else None
    last = shape[-1] * stored_bytes
    return (*shape[:-1], last // item_bytes) if last % item_bytes == 0 else None


def _parts(stored: tuple[int, ...]) -> Iterator[Part]:
    """The parts that are tried, the simplest first."""
    orders = list(itertools.permutations(range(len(stored))))
    yield from (Part(axes) for axes in orders)
    for axis, axes, number, alternate in itertools.product(range(len(stored)), orders, (0, 1), (False, True)):
        if stored[axis] % 2 == 0:
            yield Part(axes, axis, 2, number, alternate)
