"""Parts: cuts and orders of axes are recognized by the places of their items, for any sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine.checkpoint.sanitize.parts import Part, find_part, in_items, joined

SHAPES = [(8,), (8, 12), (6, 4, 10), (1, 8), (8, 1), (2, 4)]
PARTS = [
    (shape, Part(axes, axis, of, number, alternate))
    for shape in SHAPES
    for axes in itertools.permutations(range(len(shape)))
    for axis in range(len(shape))
    for of, number, alternate in [(1, 0, False), (2, 0, False), (2, 1, False), (2, 0, True), (2, 1, True)]
    if shape[axis] % of == 0
]


@pytest.mark.parametrize(("shape", "part"), PARTS, ids=str)
def test_a_part_is_found_again_and_its_run_is_true(shape: tuple[int, ...], part: Part) -> None:
    items = np.arange(np.prod(shape)).reshape(shape)
    taken = part.take(items)
    assert taken.shape == part.shape(shape)
    found = find_part(taken, shape)
    assert found is not None and np.array_equal(found.take(items), taken)
    flat = taken.reshape(-1)
    run = part.run(shape)
    assert (run is not None) == np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size))
    assert run is None or run == flat[0]


def test_items_in_no_order_are_no_part() -> None:
    items = np.random.default_rng(0).permutation(48).reshape(6, 8)
    assert find_part(items, (6, 8)) is None
    assert find_part(np.zeros((6, 8), int), (6, 8)) is None


def test_last_axes_may_be_joined() -> None:
    items = np.arange(2 * 6 * 4).reshape(2, 6, 4)
    found = find_part(items[:, 1::2].reshape(2, 12), (2, 6, 4))
    assert found == Part((0, 1, 2), 1, 2, 1, True)
    assert joined(found.shape((2, 60, 4)), 2) == (2, 120)


@pytest.mark.parametrize(("shape", "sizes", "expected"), [
    ((3, 16), (1, 4), (3, 4)), ((3, 4), (4, 1), (3, 16)), ((3, 6), (1, 4), None), ((), (4, 4), (1,)), ((5,), (2, 2), (5,)),
])  # fmt: skip
def test_items_of_another_size(shape: tuple[int, ...], sizes: tuple[int, int], expected: tuple[int, ...] | None) -> None:
    assert in_items(shape, *sizes) == expected
