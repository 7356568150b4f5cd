"""Tests of samples: the innermost room of the engine or library, and only while a token is decoded."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from engine.bench.beside.child.samples import Samples

ROOT = Path("/checkout")


def frame(stack: list[tuple[str, str]]) -> FrameType:
    """The innermost frame of calls of functions (file, name), outermost first."""
    found: list[FrameType] = []
    call = lambda: found.append(sys._getframe(1))  # noqa: E731
    for file, name in reversed(stack):
        scope = {"call": call}
        exec(compile(f"def {name}():\n    call()", str(ROOT / file), "exec"), scope)
        call = scope[name]
    call()
    return found[0]


@pytest.mark.parametrize(
    ("inner", "place"),
    [
        ([], "streaming"),
        ([("engine/cache/pool.py", "request")], "cache"),
        ([("engine/slots.py", "request")], "cache"),
        ([("engine/disk/load.py", "join"), ("/usr/lib/python3/threading.py", "wait")], "waiting for reads"),
        ([("/site-packages/mlx_lm/models/base.py", "run")], "mlx-lm"),
        ([("/site-packages/numpy/lib/sets.py", "unique")], "streaming"),
    ],
)
def test_places(inner: list[tuple[str, str]], place: str) -> None:
    decoding = [("engine/bench/main.py", "main"), ("engine/streaming/forward.py", "decode")]
    assert Samples(ROOT).place(frame([*decoding, *inner])) == place


def test_evaluation_and_waits_are_known_by_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = [("engine/streaming/forward.py", "decode"), ("engine/disk/reader.py", "read")]
    for line, place in (("mx.eval(indices)", "mlx eval"), ("load.wait()", "waiting for reads"), ("x = 1", "disk")):
        monkeypatch.setattr("linecache.getline", lambda file, number, line=line: line)
        assert Samples(ROOT).place(frame(stack)) == place


def test_nothing_outside_of_decoding() -> None:
    samples = Samples(ROOT)
    assert samples.place(frame([("engine/streaming/forward.py", "prefill"), ("engine/cache/pool.py", "request")])) == ""
    assert samples.place(None) == "" and samples.shares == {}


def test_shares_add_up_to_one() -> None:
    root = Path(__file__).parents[5]
    file, scope = str(root / "engine" / "streaming" / "x.py"), {"time": time}
    source = "def decode():\n    end = time.perf_counter() + 0.05\n    while time.perf_counter() < end: pass"
    exec(compile(source, file, "exec"), scope)
    with Samples(root) as samples:
        scope["decode"]()  # type: ignore[operator]
    assert samples.shares == {"streaming": 1}
