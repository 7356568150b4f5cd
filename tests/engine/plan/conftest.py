"""Fixtures of the plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Checkpoint

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def source(checkpoint: Make) -> Checkpoint:
    """deepseek_v3 in bf16: 3 layers of 16 experts, top-4, three projections of 2048 weights."""
    return Checkpoint.open(checkpoint("deepseek_v3", None, True))
