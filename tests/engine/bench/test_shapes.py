"""Tests of checkpoints of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine import HeadraceError, load
from engine.bench.shapes import make
from engine.checkpoint.checkpoint import Checkpoint
from engine.shapes.library import shape


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
        make(shape("qwen3_30b_a3b"), random_model)


def test_a_disk_that_is_too_small_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5e9))
    folder = tmp_path / "new" / "folder"
    with pytest.raises(HeadraceError, match=r"qwen3_30b_a3b takes 17.18 GB, but .* has 5 GB free; give a folder on"):
        make(shape("qwen3_30b_a3b"), folder)
    assert not folder.parent.exists()
