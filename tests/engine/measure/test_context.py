"""Context: the longest text, by the checkpoint's tokenizer or by its length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Judge
from engine.measure.context import longest_context

JUDGE = Judge.from_lists([["a", "text", "x" * 30, "y" * 10], ["b", "text", "x" * 50, "y" * 20]])


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_moe")


def test_the_longest_text_counts(tiny: Path, tmp_path: Path) -> None:
    assert longest_context(tiny, JUDGE) == 70
    assert longest_context(tmp_path, JUDGE) == 70 // 4
