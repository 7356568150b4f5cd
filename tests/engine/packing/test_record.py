"""Records: the whole level equals the source where possible, and every level equals the weights in its bytes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear, SwitchMLP
from mlx_lm.utils import load_model
from safetensors import safe_open
from stores import by_mlx_lm, float_weights, logits, off, streamed
from tiny import CONFIGS, make

from engine import Checkpoint, Knobs, footprint, load
from engine.checkpoint.dtypes import from_bytes
from engine.packing.pack import pack_store
from engine.packing.verify import verify_store

Make = Callable[..., Path]
TOKENS = np.random.default_rng(7).integers(0, 255, 40)
EXACT = [  # every family in MLX's layout, and the kinds that keep their codes
    *((family, 4) for family in CONFIGS if family not in ("granitemoe", "mixtral", "qwen3_moe", "qwen3_5_moe", "glm4_moe")),
    ("granitemoe", 3, False, 64), ("mixtral", 4, False, 128), ("qwen3_moe", 2), ("qwen3_5_moe", 5), ("glm4_moe", 6),
    ("qwen3_next", 8), ("deepseek_v3", 4, True), ("kimi_k25", "int4"), ("kimi_k2", "int4"),
]  # fmt: skip


@pytest.mark.parametrize("model", EXACT, ids=str)
def test_the_whole_level_is_the_checkpoint(checkpoint: Make, store: Make, model: tuple[Any, ...]) -> None:
    packed, expected = store(*model), logits(checkpoint(*model))
    assert np.max(np.abs(logits(packed, verify_reads=True) - expected)) == 0
    assert np.max(np.abs(streamed(packed) - expected)) == 0
    assert verify_store(packed) == []
    lowest = Checkpoint.open(packed).levels[0]
    low = streamed(packed, expert_bits=lowest)
    assert np.max(np.abs(logits(packed, expert_bits=lowest) - low)) == 0
    assert np.isfinite(low).all() and (np.max(np.abs(low - expected)) > 1e-3) != (model[1] == lowest)


# --- what the bytes say ---


def in_turns(codes: np.ndarray, in_word: int) -> np.ndarray:
    """Restore the order of columns that alternate word by word; codes [rows, columns]."""
    blocks = codes.reshape(len(codes), -1, in_word, 2)
    return blocks.swapaxes(2, 3).reshape(codes.shape)


def number_stream(raw: bytes, bits: int, rows: int) -> np.ndarray:
    """Codes of a little-endian stream of bits, [rows, columns]."""
    digits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little").reshape(rows, -1, bits)
    return (digits * (1 << np.arange(bits))).sum(axis=-1)


def weights_of(path: Path, bits: int) -> dict[str, dict[str, np.ndarray]]:
    """Block -> projection -> float64 [experts, rows, columns] of a level, decoded from the store's files alone."""
    described = json.loads((path / "store.json").read_text())
    levels = described["levels"]
    out: dict[str, dict[str, np.ndarray]] = {}
    for layer in described["layers"]:
        with safe_open(path / layer["file"], "numpy") as f:
            records = f.get_tensor(f"{layer['block']}.experts.records")
        experts = [_expert(record.tobytes(), layer["projections"], levels, bits) for record in records]
        out[layer["block"]] = {name: np.stack([expert[name] for expert in experts]) for name in experts[0]}
    return out


def _expert(record: bytes, projections: list[dict[str, Any]], levels: list[int], wanted: int) -> dict[str, np.ndarray]:
    at, codes, out = 0, {}, {}
    item = {"BF16": 2, "F16": 2, "F32": 4}

    def take(nbytes: int) -> np.ndarray:
        nonlocal at
        at += nbytes
        return np.frombuffer(record[at - nbytes : at], np.uint8)

    for level, bits in enumerate(levels[: levels.index(wanted) + 1]):
        affine = {}
        for p in projections:
            groups = p["rows"] * p["columns"] // p["group_size"]
            scales = from_bytes(take(groups * item[p["dtype"]]), p["dtype"]).astype(np.float64)
            if p[
                "symmetric"
            ]:  # the code of a zero weight: 8 of 4 bits, and below them the middle of those that fall together
                biases = -scales * ({2: (8 - 1.5) / 4, 3: (8 - 0.5) / 2}.get(bits) or 8 * 2 ** (bits - 4))
            else:
                biases = from_bytes(take(groups * item[p["dtype"]]), p["dtype"]).astype(np.float64)
            affine[p["name"]] = scales, biases
        if level == 0:
            for p in projections:
                take(0 if p["bias"] is None else p["rows"] * item[p["bias"]])
        for p in projections:
            new = bits - (levels[level - 1] if level else 0)
            raw = take(p["rows"] * p["columns"] * new // 8).tobytes()
            stream = number_stream(raw, new, p["rows"])
            above = levels.index(levels[-1]) - level
            if level:  # both streams have their columns as the two words had them, which the test combines
                stream = codes[p["name"]] << new | stream
                stream = in_turns(stream, 4 if bits == 6 else 64 // bits)
            codes[p["name"]] = stream
            for width in levels[level + 1 :] if bits == wanted else []:
                stream = in_turns(stream, 4 if width == 6 else 64 // width)
            scales, biases = affine[p["name"]]
            grouped = stream.reshape(-1, p["group_size"])
            out[p["name"]] = (grouped * scales[:, None] + biases[:, None]).reshape(p["rows"], p["columns"])
            assert above >= 0
    return out


def with_weights(source: Path, weights: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """Logits of mlx-lm's own model with the experts' weights replaced."""
    model, _ = load_model(source, lazy=True)
    model.set_dtype(mx.float32)
    opened = Checkpoint.open(source, to_pack=True)
    for path, module in model.named_modules():
        if isinstance(module, SwitchGLU | SwitchMLP):
            layer = opened.find(path.rpartition(".")[0])
            assert layer is not None
            for name, value in weights[layer.block].items():
                linear = SwitchLinear(value.shape[2], value.shape[1], value.shape[0], bias="bias" in module[name])
                if "bias" in module[name]:
                    linear.bias = module[name].bias
                linear.weight = mx.array(value.astype(np.float32))
                module[name] = linear
    return np.array(model(mx.array(TOKENS)[None])[0])


@pytest.mark.parametrize(("model", "levels", "bits"), [
    (("qwen3_moe", 4), None, 2), (("kimi_k25", "int4"), None, 2), (("gpt_oss", "mxfp4"), None, 2),
    (("nemotron_h", 4), None, 2),
    (("qwen3_next", 8), None, 2), (("qwen3_next", 8), None, 4), (("glm4_moe", 6), None, 3), (("qwen3_next", 8), (4, 8), 4),
    (("deepseek_v3", "mixed"), None, 3), (("deepseek_v3", "mixed"), None, 6), (("kimi_k2", "int4"), (2, 4, 8), 2),
    (("kimi_k2", "int4"), (2, 4, 8), 4), (("kimi_k2", "int4"), (3, 6), 3), (("qwen3_moe", 3), (3, 6), 3),
    (("mixtral", None), None, 4), (("mixtral", None), (2, 4, 8), 4), (("gpt_oss", "original"), None, 2),
], ids=str)  # fmt: skip
def test_a_level_is_the_model_of_its_weights(
    checkpoint: Make, store: Make, model: tuple[Any, ...], levels: tuple[int, ...] | None, bits: int
) -> None:
    """Weights decoded from the record's bytes by this file's own code give the level's logits."""
    packed = store(*model, levels=levels)
    expected = with_weights(checkpoint(*model), weights_of(packed, bits))
    found = streamed(packed, expert_bits=bits) if bits < Checkpoint.open(packed).expert_bits else streamed(packed)
    assert off(found, expected) < 1e-5
    assert (off(found, by_mlx_lm(checkpoint(*model))) > 1e-3) != ((model[1], bits) in (("int4", 4), (3, 3)))


@pytest.mark.parametrize(
    "model", [("qwen3_moe", 4), ("kimi_k2", "int4"), ("deepseek_v3", "mixed"), ("mixtral", None)], ids=str
)
def test_errors_in_the_file_are_those_of_the_weights(checkpoint: Make, store: Make, model: tuple[Any, ...]) -> None:
    packed = store(*model)
    opened = Checkpoint.open(packed)
    assert opened.levels is not None and opened.bit_errors is not None
    source, _ = load_model(checkpoint(*model), lazy=True)
    for number, bits in enumerate(opened.levels):
        for layer, (block, projections) in enumerate(weights_of(packed, bits).items()):
            for place, (name, value) in enumerate(projections.items()):
                theirs = float_weights(source, block, name)
                expected = ((value - theirs) ** 2).sum(axis=(1, 2)) / (theirs**2).sum(axis=(1, 2))
                assert np.allclose(opened.bit_errors[layer, :, place, number], expected, rtol=1e-3, atol=1e-9)


# --- sources ---


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
@pytest.mark.parametrize("bits", [4, None])
def test_other_types_of_scales(tmp_path: Path, bits: int | None, dtype: mx.Dtype) -> None:
    source = make(tmp_path / "source", "qwen3_moe", bits=bits, dtype=dtype)
    pack_store(source, tmp_path / "store")
    if bits is None:
        assert off(streamed(tmp_path / "store"), logits(source)) < 0.5
    else:
        assert np.array_equal(streamed(tmp_path / "store"), logits(source))
    found = Checkpoint.open(tmp_path / "store").layers[0].tensor("up_proj.scales")
    assert found is not None and found.dtype == {mx.float16: "F16", mx.float32: "F32"}[dtype]


def test_the_prefix_is_all_that_the_low_level_reads(store: Make) -> None:
    """A record's prefix is exactly what the low level reads, and the whole level reads as many bytes as the source has."""
    packed = store("qwen3_moe", 4)
    source = packed.with_name("qwen3_moe-4")
    layer = Checkpoint.open(packed).layers[0]
    assert layer.records is not None
    low, whole = layer.at(dict.fromkeys(layer.projections, 2)), layer
    begin = min(int(t.offset[0]) for t in low.tensors)
    spans = {}
    for name, form in (("low", low), ("whole", whole)):
        parts = [part for t in form.tensors for part in (t.parts or (t,))]
        ranges = sorted((int(p.offset[0]) - begin, int(p.offset[0]) - begin + p.nbytes) for p in parts)
        assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))  # one run of bytes
        spans[name] = ranges[0][0], ranges[-1][1]
    assert spans["low"][0] == 0 and spans["whole"][1] > spans["low"][1] > spans["whole"][0] > 0
    assert spans["whole"][1] - spans["whole"][0] == Checkpoint.open(source).layers[0].expert_bytes
    sizes = {}
    for bits in (2, None):
        lossy = {} if bits is None else {"expert_bits": bits}
        with load(packed, Knobs(cache_gb=footprint(packed, Knobs(**lossy)).one_token_gb, **lossy)) as engine:
            engine.logits(TOKENS)
            experts = engine.stats.misses
            assert experts > 0 and engine.stats.bytes_read % experts == 0
            sizes[bits] = engine.stats.bytes_read // experts
    assert sizes == {2: spans["low"][1], None: spans["whole"][1] - spans["whole"][0]}
    assert sizes[2] / sizes[None] == pytest.approx(3 / 5, rel=1e-6)  # groups of 32: 2 + 1 of 4 + 1 bits a weight
    assert math.isclose(layer.expert_bytes, sizes[None])
