"""Helpers for one-line messages."""

from __future__ import annotations

from engine.errors import did_you_mean, first_line


def test_the_nearest_name_or_all() -> None:
    assert did_you_mean("cache_bg", ["cache_gb", "top_k"]) == "did you mean cache_gb?"
    assert did_you_mean("zzz", ["cache_gb", "top_k"]) == "choose one of: cache_gb, top_k"


def test_the_first_line_is_short() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 1000))) == 200
