"""Needed tensors: what the built model needs and the tensors do not give, under the names of mlx-lm's `sanitize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import CONFIGS, ORIGINALS

from engine.checkpoint.built.needed import missing, placeholders
from engine.checkpoint.files.headers import read_headers

Make = Callable[..., Path]


def described(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(n, e.dtype, e.shape) for n, e in read_headers(sorted(path.glob("model*.safetensors"))).items()]


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_whole_model_lacks_nothing_and_any_part_is_missed(checkpoint: Make, family: str) -> None:
    for kind in (None, *(["original"] if family in ORIGINALS else [])):
        path = checkpoint(family, kind)
        config, tensors = json.loads((path / "config.json").read_text()), described(path)
        assert missing(config, tensors) == []
        experts = [t for t in tensors if "expert" in t[0] or "switch" in t[0] or "linear.weight" in t[0]]
        for part in (experts[:1], experts[-1:], [t for t in tensors if "embed" in t[0]], tensors[::2]):
            if not any(".mtp." in f".{t[0]}" or "layers.61." in t[0] or "layers.6." in t[0] for t in part):
                assert missing(config, [t for t in tensors if t not in part])


@pytest.mark.parametrize("tensor", ["scales", "biases"])
def test_the_parts_of_quantized_weights(checkpoint: Make, tensor: str) -> None:
    path = checkpoint("qwen3_moe", 4)
    config, tensors = json.loads((path / "config.json").read_text()), described(path)
    name = f"model.layers.1.self_attn.q_proj.{tensor}"
    assert missing(config, tensors) == []
    assert missing(config, [t for t in tensors if t[0] != name]) == [name]


def test_fp8_without_its_scales(checkpoint: Make) -> None:
    path = checkpoint("deepseek_v3", "fp8")
    config, tensors = json.loads((path / "config.json").read_text()), described(path)
    name = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    assert missing(config, tensors) == [] and missing(config, [t for t in tensors if t[0] != name]) == [name]


def test_placeholders_have_the_types_that_mlx_loads() -> None:
    found = placeholders([("a", "BF16", (2, 3)), ("b", "F8_E4M3", (4,)), ("c", "BF16", (2, 3)), ("d", "I64", ())])
    assert [str(v.dtype).rpartition(".")[2] for v in found.values()] == ["bfloat16", "uint8", "bfloat16", "int64"]
    assert found["a"] is found["c"] and [v.shape for v in found.values()] == [(2, 3), (4,), (2, 3), ()]
