"""Experts: byte ranges, shapes and the checks against MLX."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine import Checkpoint, CheckpointError
from engine.checkpoint.known import opened

Make = Callable[..., Path]
Header = dict[str, Any]


@pytest.mark.parametrize(("family", "bits", "per_expert"), [("deepseek_v3", None, True), ("qwen3_moe", 4, False)])
def test_ranges_hold_what_mlx_loads(checkpoint: Make, family: str, bits: int, per_expert: bool) -> None:
    source = Checkpoint.open(checkpoint(family, bits, per_expert))
    weights = mx.load(str(source.files[0]))
    for layer in source.layers:
        for tensor in layer.tensors:
            for expert in (0, layer.experts - 1):
                with open(source.files[tensor.file[expert]], "rb") as f:
                    f.seek(tensor.offset[expert])
                    found = f.read(tensor.nbytes)
                if per_expert:
                    expected = weights[f"{layer.block}.experts.{expert}.{tensor.name}"]
                else:
                    expected = weights[f"{layer.block}.switch_mlp.{tensor.name}"][expert]
                kind = mx.uint16 if expected.dtype == mx.bfloat16 else expected.dtype
                assert found == np.array(expected.view(kind)).tobytes()


def test_shapes_tell_the_quantization(checkpoint: Make) -> None:
    assert Checkpoint.open(checkpoint("qwen3_moe", 3)).layers[0].quantization("down_proj") == {
        "group_size": 32, "bits": 3, "mode": "affine",
    }  # fmt: skip
    assert Checkpoint.open(checkpoint("qwen3_moe", 3)).expert_bits == 3
    assert Checkpoint.open(checkpoint("deepseek_v3", None, True)).layers[0].quantization("up_proj") is None


def edit(path: Path, change: Callable[[Header], None]) -> None:
    """Change a checkpoint's header; its data stays."""
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_codes_of_another_type(checkpoint: Make, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoint("qwen3_moe", 3), tmp_path / "copy"))
    (path / "model.safetensors.index.json").unlink()
    edit(path, lambda header: header["model.layers.1.mlp.switch_mlp.up_proj.weight"].update(dtype="F32"))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj has .*weight F32 .*copy the checkpoint again") as e:
        Checkpoint.open(path)
    one_line(e)


def test_the_places_of_a_shared_checkpoint_cannot_be_changed(checkpoint: Make) -> None:
    tensor = opened(checkpoint("qwen3_moe", 4)).layers[0].tensors[0]
    for places in (tensor.file, tensor.offset):
        with pytest.raises(ValueError, match="read-only"):
            places[0] = 1
