"""Mode: the words for the path that a measurement took."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Checkpoint, Knobs
from engine.measure.mode import mode_of


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({}, "reference float32 cpu"),
        ({"expert_bits": 4}, "resident float32 cpu"),
        ({"cache_gb": 1.0, "expert_bits": 4}, "streamed float32 cpu buffered"),
        ({"cache_gb": 1.0, "io_mode": "direct", "ssd_gbps": 0.5}, "streamed float32 cpu direct held-to-0.5-GB/s"),
    ],
)
def test_the_words_of_a_mode(checkpoint: Callable[..., Path], knobs: dict[str, Any], words: str) -> None:
    assert mode_of(Knobs(**knobs), Checkpoint.open(checkpoint("qwen3_moe"))) == words
