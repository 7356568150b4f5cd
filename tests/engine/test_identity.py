"""Lossless means identical: streamed logits equal the resident model's to the last bit, at every cache size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from tiny import make_int4

from engine import Engine, Knobs, footprint, load

MODELS = [
    ("deepseek_v3", None, True),
    ("deepseek_v3", 4, False),
    ("deepseek_v3", 4, True),
    ("deepseek_v3", "mixed", False),
    ("qwen3_moe", "mxfp4", False),
    ("qwen3_moe", "mxfp8", False),
    ("qwen3_moe", "nvfp4", False),
    ("qwen3_moe", None, False),
    ("qwen3_moe", 3, False),
    ("gpt_oss", 4, False),
    ("gpt_oss", None, False),
    ("deepseek_v2", 4, False),
    ("glm4_moe", None, False),
    ("glm4_moe_lite", 4, False),
    ("granitemoe", 4, False),
    ("kimi_k25", 4, False),
    ("lfm2_moe", 4, False),
    ("minimax", 4, False),
    ("mixtral", None, False),
    ("nemotron_h", 4, False),
    ("olmoe", None, False),
    ("qwen3_next", 4, False),
]
PROMPT, DECODED = 40, 16
TOKENS = np.random.default_rng(7).integers(0, 255, PROMPT + DECODED)


def both_phases(engine: Engine) -> np.ndarray:
    """Logits of a prefill and of token-by-token decoding after it."""
    cache = make_prompt_cache(engine._model)
    parts = list(engine._prefill(TOKENS[:PROMPT].tolist(), cache))
    parts += [engine._forward([int(t)], cache) for t in TOKENS[PROMPT:]]
    return np.concatenate([np.array(p) for p in parts])


def cache_sizes(path: Path, knobs: Knobs | None = None) -> list[float]:
    """One token's experts, a third of the way, two thirds, everything."""
    f = footprint(path, knobs)
    return [f.one_token_gb + share * (f.all_experts_gb - f.one_token_gb) for share in (0, 0.3, 0.7, 1)]


@pytest.mark.parametrize(("family", "bits", "per_expert"), MODELS)
def test_streamed_equals_resident(
    checkpoint: Callable[..., Path], family: str, bits: int | str | None, per_expert: bool
) -> None:
    path = checkpoint(family, bits, per_expert)
    with load(path) as resident:
        expected = both_phases(resident)
    assert np.isfinite(expected).all()
    *some, everything = cache_sizes(path)
    for cache_gb in (*some, everything):
        with load(path, Knobs(cache_gb=cache_gb)) as engine:
            assert np.max(np.abs(both_phases(engine) - expected)) == 0, cache_gb
            assert (engine.stats.misses > 0) == (cache_gb < everything)


@pytest.mark.parametrize(("family", "bits", "per_expert"), MODELS)
@pytest.mark.parametrize("sync_window", [2, "all", "auto"])
def test_optimistic_decoding_is_exact(
    checkpoint: Callable[..., Path], family: str, bits: int | str | None, per_expert: bool, sync_window: int | str
) -> None:
    path = checkpoint(family, bits, per_expert)
    with load(path) as resident:
        expected = both_phases(resident)
    for cache_gb in cache_sizes(path)[:3]:
        with load(path, Knobs.from_mapping({"cache_gb": cache_gb, "sync_window": sync_window})) as engine:
            assert np.max(np.abs(both_phases(engine) - expected)) == 0, cache_gb
            stats = engine.stats
            assert stats.passes > stats.windows > 0
            with load(path, Knobs(cache_gb=cache_gb)) as classic:
                both_phases(classic)
            assert stats.hits + stats.misses == classic.stats.hits + classic.stats.misses


def test_kimi_int4_original_streams_in_place(tmp_path: Path) -> None:
    """compressed-tensors codes and scales, from which the biases are derived."""
    path = make_int4(tmp_path / "int4")
    with load(path) as resident:
        expected = both_phases(resident)
    assert footprint(path).expert_bits == 4
    for cache_gb in cache_sizes(path)[:3]:
        for others in ({}, {"sync_window": 0}, {"prefetch": "stale_gate"}):
            with load(path, Knobs.from_mapping({"cache_gb": cache_gb, **others})) as engine:
                assert np.max(np.abs(both_phases(engine) - expected)) == 0
    with load(path, Knobs(expert_bits=2)) as whole, load(path, Knobs(expert_bits=2, cache_gb=cache_sizes(path)[1])) as part:
        assert np.max(np.abs(both_phases(whole) - both_phases(part))) == 0


def test_the_reference_is_mlx_lm_itself(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("deepseek_v3", None, True)
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    expected = np.array(model(mx.array(TOKENS)[None])[0])
    with load(path) as resident:
        assert np.array_equal(resident.logits(TOKENS), expected)


@pytest.mark.parametrize(
    "other",
    [
        {"prefetch": "stale_gate"}, {"prefetch": "stale_gate", "prefetch_depth": 3, "prefetch_width": 2},
        {"prefetch": "stale_gate", "prefetch_depth": 0}, {"prefetch": "stale_gate", "prefetch_cap_mb": 0.02},
        {"prefetch": "previous_token", "prefetch_width": 2}, {"cache_layer_shape": 0.5}, {"evict_half_life": 1e-6},
        {"evict_half_life": float("inf")},
        {"read_block_kib": 4}, {"read_threads": 1}, {"io_mode": "direct"}, {"ssd_gbps": 0.5},
    ],
)  # fmt: skip
def test_every_lossless_knob_leaves_the_logits_alone(checkpoint: Callable[..., Path], other: dict[str, object]) -> None:
    path = checkpoint("deepseek_v3", None, True)
    with load(path) as resident:
        expected = both_phases(resident)
    for cache_gb in cache_sizes(path)[:2]:
        with load(path, Knobs.from_mapping({"cache_gb": cache_gb, **other})) as engine:
            assert np.max(np.abs(both_phases(engine) - expected)) == 0


@pytest.mark.parametrize(
    "lossy", [{"expert_bits": 4}, {"expert_bits": 8, "cold_bits": 2}, {"cold_bits": 3, "hot_share": 0.5}]
)
@pytest.mark.parametrize(("family", "bits", "per_expert"), [("deepseek_v3", None, True), ("qwen3_moe", 8, False)])
def test_a_lossy_model_is_the_same_streamed_and_resident(
    checkpoint: Callable[..., Path], family: str, bits: int | str | None, per_expert: bool, lossy: dict[str, int]
) -> None:
    path = checkpoint(family, bits, per_expert)
    with load(path) as reference, load(path, Knobs(**lossy)) as resident:
        expected = both_phases(resident)
        assert np.max(np.abs(both_phases(reference) - expected)) > 1e-3
    for cache_gb in cache_sizes(path, Knobs(**lossy))[:3]:
        with load(path, Knobs(cache_gb=cache_gb, prefetch="stale_gate", **lossy)) as engine:
            assert np.max(np.abs(both_phases(engine) - expected)) == 0


def test_quantizing_on_load_is_mlx_own_quantization(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("qwen3_moe", None, False)
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    for layer in model.layers:
        switch = layer.mlp.switch_mlp
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(switch, name, getattr(switch, name).to_quantized(group_size=64 if name != "down_proj" else 32, bits=4))
    with load(path, Knobs(expert_bits=4)) as engine:
        assert np.array_equal(engine.logits(TOKENS), np.array(model(mx.array(TOKENS)[None])[0]))


def test_a_wrong_expert_is_noticed(checkpoint: Callable[..., Path]) -> None:
    """The negative control: with one tensor's experts shifted by one, identity must fail."""
    path = checkpoint("deepseek_v3", None, True)
    with load(path) as resident, load(path, Knobs(cache_gb=cache_sizes(path)[1])) as engine:
        offsets = engine.checkpoint.layers[0].tensors[0].offset
        offsets[:] = np.roll(offsets, 1)
        assert np.max(np.abs(both_phases(engine) - both_phases(resident))) > 1e-3
