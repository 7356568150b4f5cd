"""Fixtures of the reads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 300_001, dtype=np.uint8).tobytes())
    return path


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Reads wait until the event is set."""
    gate, real = threading.Event(), os.preadv

    def waiting(fd: int, into: list[memoryview], offset: int) -> int:
        assert gate.wait(60)
        return real(fd, into, offset)

    monkeypatch.setattr(os, "preadv", waiting)
    return gate
