"""Tests of checkpoints of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine import HeadraceError, load
from engine.bench.shapes import make
from engine.checkpoint.checkpoint import Checkpoint


def test_random_weights_give_finite_logits(random_model: Path) -> None:
    with load(random_model) as engine:
        logits = engine.logits([1, 2, 3])
    assert np.isfinite(logits).all() and 0.01 < logits.std() < 100


def test_layers_are_files_of_their_own(random_model: Path) -> None:
    source = Checkpoint.open(random_model)
    assert (len(source.layers), source.top_k, source.expert_bits) == (4, 4, 4)
    assert len(source.files) == 4 + 1, "a file per layer, and one for the rest"
    quantization = json.loads((random_model / "config.json").read_text())["quantization"]
    assert (quantization["bits"], quantization["model.layers.0.mlp.gate"]["bits"]) == (4, 8)


def test_a_folder_with_files_is_not_overwritten(random_model: Path) -> None:
    with pytest.raises(HeadraceError, match="is not empty; give a new folder"):
        make("small", random_model)
