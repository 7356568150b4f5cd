"""Trace: mlx-lm's own code gives the layouts that names tell, and says when it cannot open a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import ORIGINALS

from engine import Checkpoint
from engine.checkpoint.files.headers import read_headers
from engine.checkpoint.sanitize.stored import follow

Make = Callable[..., Path]


@pytest.mark.parametrize("family", ORIGINALS)
def test_names_and_mlx_lm_agree(checkpoint: Make, family: str) -> None:
    """Every expert's bytes lie where mlx-lm takes them from, with the projections that it gives them."""
    source = Checkpoint.open(checkpoint(family, "original"))
    found = follow(source.path, read_headers(source.files))
    assert found.refused is None and not found.computed
    assert [layer.number for layer in source.layers] == sorted(layer.number for layer in found.layers)
    for layer in found.layers:
        ours = source.find(layer.block)
        assert ours is not None and {t.name for t in ours.tensors} == {t.name for t in layer.tensors}
        for other in layer.tensors:
            one = ours.tensor(other.name)
            assert one is not None
            assert (one.shape, one.dtype, other.part) == (other.shape, other.dtype, None)
            assert np.array_equal(one.offset, other.offset) and np.array_equal(one.file, other.file)


@pytest.mark.parametrize("model", [("kimi_k25", "int4"), ("deepseek_v3", "fp8")], ids=str)
def test_values_that_mlx_lm_computes_are_not_followed(checkpoint: Make, model: tuple[str, str]) -> None:
    path = checkpoint(*model)
    found = follow(path, read_headers(sorted(path.glob("model*.safetensors"))))
    assert found.refused is None and not found.layers and len(found.computed) > 1
