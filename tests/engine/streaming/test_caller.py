"""Caller: only calls of mlx-lm's generation code whose result is dropped are recognized."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from engine.streaming.caller import GENERATION, drops_result

SOURCE = """
def dropped(model):
    model(1)

def dropped_with_keyword(model):
    model(1, cache=[])

def dropped_by_the_next(model):
    def step(x):
        return model(x)
    step(1)

def used(model):
    return model(1)

def assigned(model):
    _ = model(1)

def argument(model):
    out = []
    out.append(model(1))

def indexed(model):
    model(1)[0]

def yielded(model):
    yield model(1)
"""


def calls(name: str, module: str) -> bool:
    """Run the function `name` of SOURCE as part of `module`; return what its call of the model finds."""
    space: dict[str, Any] = {"__name__": module}
    exec(SOURCE, space)
    found: list[bool] = []

    def model(x: int, cache: Any = None) -> list[int]:
        found.append(drops_result(sys._getframe(1)))
        return [x]

    result = space[name](model)
    if name == "yielded":
        next(result)
    return found[0]


@pytest.mark.parametrize("name", ["dropped", "dropped_with_keyword", "dropped_by_the_next"])
def test_a_dropped_result_is_recognized_in_mlx_lm_only(name: str) -> None:
    assert calls(name, GENERATION)
    assert not calls(name, "someone.else")


@pytest.mark.parametrize("name", ["used", "assigned", "argument", "indexed", "yielded"])
def test_a_result_that_is_used_is_not_taken_for_dropped(name: str) -> None:
    assert not calls(name, GENERATION)


def test_there_may_be_no_frame() -> None:
    assert not drops_result(None)
