"""Tests of the driver: requests in the process of a checkout, here this one's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bench.beside.child.driver import Driver


def test_evaluation_texts(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("The wheel turns when there is water. " * 12)
    driver, model = Driver(), str(checkpoint("deepseek_v3", None, True))
    opened = driver.answer({"do": "open", "model": model, "knobs": {"cache_gb": 1}, "texts": str(tmp_path / "texts.txt")})
    assert "streamed" in opened["mode"]
    turn = driver.answer({"do": "turn", "tokens": 3})
    assert turn["tokens"] == 3 and turn["tok_s"] > 0 and turn["samples"] == {}
    assert driver.answer({"do": "close"}) == {} and driver.engine is None


def test_a_request_that_does_not_exist() -> None:
    with pytest.raises(KeyError):
        Driver().answer({"do": "dance"})
