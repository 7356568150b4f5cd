"""Fixtures of the reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 300_001, dtype=np.uint8).tobytes())
    return path
