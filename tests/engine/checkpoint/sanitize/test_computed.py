"""Computed experts: the packer reads every layout with the weights that mlx-lm's model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP
from mlx_lm.utils import load_model
from originals import COMPUTED, LAYOUTS, NOT_TO_PACK, WITHOUT_CPU, make_stored

from engine import CheckpointError
from engine.checkpoint.experts import ExpertLayer
from engine.checkpoint.files.headers import read_headers
from engine.checkpoint.layouts import expert_layers
from engine.packing.sources import SourceLayer

PACKED = [name for name in (*LAYOUTS, *WITHOUT_CPU) if name not in NOT_TO_PACK]


def by_mlx_lm(linear: Any, expert: int) -> np.ndarray:
    """float32 [rows, columns] of one expert."""
    weight = linear.weight[expert]
    if "scales" in linear:
        how = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
        factor = linear.get("global_scale")
        how |= {} if factor is None else {"global_scale": factor[expert]}
        weight = mx.dequantize(weight, linear.scales[expert], **how)
    return np.array(weight.astype(mx.bfloat16).astype(mx.float32))


def layers_of(path: Path, *, to_pack: bool) -> tuple[ExpertLayer, ...]:
    """Without the model's numbers, which some families give on Metal alone."""
    return expert_layers(path, read_headers([path / "model.safetensors"]), to_pack=to_pack).layers


def by_the_packer(file: Path, layer: ExpertLayer, projection: str, expert: int, held: Any) -> np.ndarray:
    numbers, stored = SourceLayer(layer, (128, 128)), {}
    for t in numbers.tensors(projection):
        if held is not None:
            stored[t.name] = held[t.name][expert]
            continue
        content = file.read_bytes()[t.offset[expert] :][: t.stored_bytes]
        stored[t.name] = t.from_stored(np.frombuffer(content, np.uint8))
    assert numbers.kinds[projection].mode != "affine"
    return np.array(mx.array(numbers.weights(projection, stored)).astype(mx.bfloat16).astype(mx.float32))


@pytest.mark.parametrize("layout", PACKED)
def test_the_packer_reads_what_mlx_lm_computes(layout: str, tmp_path: Path) -> None:
    path = make_stored(tmp_path / "stored", layout)
    model, _ = load_model(path, lazy=True)
    switches = {p.rpartition(".")[0]: m for p, m in model.named_modules() if isinstance(m, SwitchGLU | SwitchMLP)}
    layers = layers_of(path, to_pack=True)
    assert len(layers) == len(switches) == 4
    for layer in layers[:2]:
        held = layer.compute() if layer.compute is not None else None
        assert (held is not None) == (layout in COMPUTED)
        for projection in layer.projections:
            linear = switches[layer.block][projection]
            for expert in (0, layer.experts - 1):
                found = by_the_packer(path / "model.safetensors", layer, projection, expert, held)
                assert np.array_equal(found, by_mlx_lm(linear, expert))


@pytest.mark.parametrize("layout", COMPUTED)
def test_the_refusal_names_packing(layout: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mlx-lm computes .* from other values, so that it cannot .* pack the model"):
        layers_of(make_stored(tmp_path / "stored", layout), to_pack=False)
