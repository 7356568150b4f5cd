"""Process: the tiny model opens, and its peak is that of the libraries."""

from __future__ import annotations

from pathlib import Path

from engine import Checkpoint
from engine.bench.process import write_model
from engine.plan.memory.process import process_bytes


def test_the_model_is_tiny_and_opens(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert Checkpoint.open(tmp_path).top_k == 2
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1e6


def test_a_process_takes_a_plausible_part() -> None:
    assert 20e6 < process_bytes() < 4e9
