"""Fixtures of several rooms."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[..., Path]


@pytest.fixture
def packed(store: Make, tmp_path: Path) -> Path:
    """A private copy of a store."""
    return Path(shutil.copytree(store("qwen3_moe", 4), tmp_path / "packed"))
