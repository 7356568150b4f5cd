"""Shapes: checkpoints of random weights compute, and existing folders are not overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import load
from engine.__main__ import main
from engine.bench import shapes

Capture = pytest.CaptureFixture[str]
TINY = {
    **shapes.SHAPES["qwen3_30b_a3b"], "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 128,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "vocab_size": 256,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    assert main(["bench", "make", str(tmp_path / "tiny"), "--shape", "tiny"]) == 0
    return tmp_path / "tiny"


def test_random_weights_compute_and_are_not_overwritten(tiny: Path, capsys: Capture) -> None:
    with load(tiny) as engine:
        logits = engine.logits([1, 2, 3])
    assert np.isfinite(logits).all() and 0.01 < logits.std() < 100
    assert main(["bench", "make", str(tiny), "--shape", "tiny"]) == 2
    assert "is not empty" in capsys.readouterr().err
