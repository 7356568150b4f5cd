"""Manifest: portable paths, and the differences that make another study."""

from __future__ import annotations

import pytest

from engine.system.shipped import HERE, ROOT
from harness.study.manifest import changes, portable


def test_paths_of_the_checkout_are_portable() -> None:
    config = {"model": {"path": f"{ROOT}/experiments/x"}, "other": "/mnt/x", "trials": 3}
    assert portable(config) == {"model": {"path": f"{HERE}/experiments/x"}, "other": "/mnt/x", "trials": 3}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"seed": 0}, {"seed": 0}, []),
        ({"seed": 0}, {"seed": 3}, ["seed was 0 and is now 3"]),
        ({"space": {"knobs": {"ssd_gbps": 0.1}}}, {"space": {"knobs": {}}}, ["knobs.ssd_gbps was 0.1 and is now not set"]),
        ({"constraints": ["a"]}, {"constraints": ["a", "b"]}, ["constraints was ['a'] and is now ['a', 'b']"]),
    ],
)
def test_each_differing_leaf_is_named(old: dict, new: dict, expected: list[str]) -> None:
    assert changes(old, new) == expected
