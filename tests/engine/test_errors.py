"""Errors: every kind is a HeadraceError, and hints and first lines stay one short line."""

from __future__ import annotations

import pytest

from engine.errors import CheckpointError, HeadraceError, JudgeError, KnobError, ReadError, did_you_mean, first_line


@pytest.mark.parametrize("kind", [CheckpointError, JudgeError, KnobError, ReadError])
def test_every_kind_is_caught_as_one(kind: type[Exception]) -> None:
    assert issubclass(kind, HeadraceError)


def test_a_knob_error_is_a_value_error() -> None:
    assert issubclass(KnobError, ValueError)


def test_hints() -> None:
    assert did_you_mean("cache_db", ["cache_gb", "top_k"]) == "did you mean cache_gb?"
    assert did_you_mean("zzz", ["cache_gb", "top_k"]) == "choose one of: cache_gb, top_k"


def test_first_lines() -> None:
    assert first_line(ValueError("\n one \n two")) == "one "
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 500))) == 200
