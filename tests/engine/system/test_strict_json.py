"""Strict JSON: what is written and read, and that nothing else writes or reads the project's documents."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import FigureError
from engine.system import atomic
from engine.system.strict_json import NumberError, from_json, not_finite, refuse_not_finite, to_json

ROOT = Path(__file__).resolve().parents[3]
BAD = [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.float64("inf"), np.array([1.0, np.nan])]
OTHERS = ("engine/checkpoint/", "engine/tokenizer/")  # read files of others as mlx-lm does; a config may have Infinity
OWN = "engine/checkpoint/store/"
CHILD = "engine/bench/beside/child/driver.py"  # runs on revisions that have no strict_json
PARSERS = ("engine/quality/json_prompts.py", "engine/system/strict_json.py", CHILD)


def nested(rng: random.Random, leaf: Any, depth: int = 4) -> Any:
    """A document with `leaf` somewhere in it."""
    if not depth:
        return leaf
    inner = nested(rng, leaf, depth - 1)
    fill = {"a": 1, "b": [2.5, None, "NaN"], "c": {"d": -1e308}}
    return rng.choice([{**fill, "z": inner}, {"y": inner, **fill}, [1, "inf", inner], (inner, True)])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(seed: int, bad: Any) -> None:
    rng = random.Random(seed)
    document = nested(rng, bad)
    with pytest.raises(FigureError) as e:
        refuse_not_finite(document, "trial 7", "fix it")
    assert "trial 7" in str(e.value) and "fix it" in str(e.value) and "\n" not in str(e.value)
    if not isinstance(bad, np.ndarray | np.float32):
        with pytest.raises(FigureError, match="the report"):
            to_json(document, "the report")
    fine = nested(random.Random(seed), 0.5)
    assert not_finite(fine) is None
    assert from_json(to_json(fine)) == json.loads(json.dumps(fine))


def test_the_error_names_the_place() -> None:
    with pytest.raises(FigureError, match=r"^measured\.nll\[1\] of the row is minus infinite, which is no figure; nothing"):
        to_json({"measured": {"nll": [1.0, -float("inf")]}}, "the row")
    with pytest.raises(FigureError, match=r"^the speed is nan"):
        refuse_not_finite(float("nan"), "the speed")


@pytest.mark.parametrize("text", ["NaN", "[1, Infinity]", '{"a": -Infinity}', "1e999", '{"a": [-1e400]}'])
def test_a_text_with_such_a_number_is_refused(text: str) -> None:
    with pytest.raises(NumberError, match=r"^a: |^\[1\]: |^a\[0\]: |^NaN is|^1e999 is"):
        from_json(text)
    assert from_json('{"a": 1e300, "b": "NaN", "c": 12345678901234567890}')["c"] == 12345678901234567890
    with pytest.raises(json.JSONDecodeError):
        from_json("{")


def test_a_file_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    atomic.write_json(path, {"a": 1})
    with pytest.raises(FigureError):
        atomic.write_json(path, {"a": float("nan")})
    assert from_json(path.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_nothing_else_writes_or_reads_json() -> None:
    """A call of `json.dumps` or `json.loads` elsewhere would let a figure through that is not finite."""
    wrong = []
    for path in [*(ROOT / "engine").rglob("*.py"), *(ROOT / "harness").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        exempt = name in PARSERS or (name.startswith(OTHERS) and not name.startswith(OWN))
        for node in ast.walk(ast.parse(path.read_text())):
            of_json = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "json"
            if of_json and node.attr in ("dumps", "dump", "loads", "load") and not exempt:
                wrong.append(f"{name}:{node.lineno} json.{node.attr}; use engine.system.strict_json")
    assert not wrong, "\n".join(wrong)
