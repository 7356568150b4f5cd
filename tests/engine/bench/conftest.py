"""Fixtures of the benchmarks' tests: large files, short evaluation texts, and a small model of random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engine.bench.shapes import make
from engine.measure.judge import Judge, Text
from engine.shapes.library import shape

# Qwen3-30B-A3B's configuration with 4 layers of 16 experts, top-4.
SMALL = {
    **shape("qwen3_30b_a3b").config, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 128,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "vocab_size": 256,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    """Two files of random bytes: 20 MiB, and 5,000,001 bytes."""
    paths = tmp_path / "a", tmp_path / "b"
    for path, size in zip(paths, (20 << 20, 5_000_001), strict=True):
        path.write_bytes(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    return paths


@pytest.fixture
def judge() -> Judge:
    """One short text: a prompt of 37 tokens and a continuation of 24."""
    return Judge((Text("wheel", "plain", "The wheel turns when there is water. ", "The mill stops in winter"),))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights with 4 layers of 16 experts, written by `make`."""
    folder = tmp_path_factory.mktemp("shapes") / "small"
    make(dataclasses.replace(shape("qwen3_30b_a3b"), name="small", config=SMALL), folder)
    return folder
