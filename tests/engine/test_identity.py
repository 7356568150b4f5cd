"""Identity: streamed logits equal the resident model's to the last bit, at every cache size, for all lossless knobs.

The sets are covering ones: each family with each window and with a full cache, each width and layout with one window, and
each of both at all cache sizes in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from tiny import ORIGINALS

from engine import Checkpoint, Engine, Knobs, footprint, load
from engine.cache.slots import Slots

Make = Callable[..., Path]
# Family, bits, one tensor an expert, group size. Every family quantized and in bf16, which is "original" where its
# original can be streamed in place; every width, group and mode in one family or another.
MODELS = [
    ("deepseek_v2", 4), ("deepseek_v3", None), ("deepseek_v3", 4), ("deepseek_v3", 4, True), ("deepseek_v3", "mixed"),
    ("glm4_moe", 8), ("glm4_moe_lite", 6), ("gpt_oss", None), ("gpt_oss", 4), ("gpt_oss", "mxfp4"),
    ("granitemoe", 3, False, 64), ("kimi_k2", 5), ("kimi_k2", "int4"), ("kimi_k25", 4), ("kimi_k25", "int4"),
    ("lfm2_moe", 8), ("minimax", "mxfp8"), ("mixtral", 4, False, 128), ("nemotron_h", 4), ("olmoe", 2, False, 64),
    ("qwen3_5_moe", "mixed"), ("qwen3_moe", "nvfp4"), ("qwen3_moe", 3), ("qwen3_next", 4),
    *((family, "original") for family in ORIGINALS),
]  # fmt: skip
WINDOWS = (1, 4, "all")
FIRST = [model for i, model in enumerate(MODELS) if not any(model[0] == other[0] for other in MODELS[:i])]
COVERING = [
    (model, window) for i, model in enumerate(MODELS) for window in (WINDOWS if model in FIRST else [WINDOWS[i % 3]])
]
PROMPT, DECODED = 36, 8
TOKENS = np.random.default_rng(7).integers(0, 255, PROMPT + DECODED)


def both_phases(engine: Engine) -> np.ndarray:
    """Logits of a prefill and of the token-by-token decoding after it."""
    cache = make_prompt_cache(engine.model)
    parts = list(engine.forward.prefill(TOKENS[:PROMPT].tolist(), cache))
    parts += [engine.forward.logits([int(t)], cache) for t in TOKENS[PROMPT:]]
    return np.concatenate([np.array(p) for p in parts])


def cache_sizes(path: Path, knobs: Knobs | None = None) -> list[float]:
    """One token's experts, and one and two thirds of the way to all experts."""
    f = footprint(path, knobs)
    return [f.one_token_gb + share * (f.all_experts_gb - f.one_token_gb) for share in (0, 0.3, 0.7)]


@pytest.fixture(scope="session")
def resident_logits() -> Callable[[Path], np.ndarray]:
    """The resident model's logits of both phases, computed once per checkpoint."""
    known: dict[Path, np.ndarray] = {}

    def get(path: Path) -> np.ndarray:
        if path not in known:
            with load(path) as resident:
                known[path] = both_phases(resident)
            assert np.isfinite(known[path]).all()
        return known[path]

    return get


Logits = Callable[[Path], np.ndarray]


@pytest.mark.parametrize(("model", "sync_window"), COVERING, ids=str)
def test_streamed_equals_resident(
    checkpoint: Make, resident_logits: Logits, model: tuple[str, int | str | None], sync_window: int | str
) -> None:
    path = checkpoint(*model)
    sizes = cache_sizes(path)
    if model not in FIRST or sync_window != 1:  # a family's first layout runs at all sizes, its windows at one size each
        sizes = [sizes[(WINDOWS.index(sync_window) + MODELS.index(model)) % 3]]
    for cache_gb in sizes:
        with load(path, Knobs.from_mapping({"cache_gb": cache_gb, "sync_window": sync_window})) as engine:
            assert len(engine.layers) >= 5 or model[0] == "deepseek_v3"  # so that windows of 4 and all differ
            assert np.max(np.abs(both_phases(engine) - resident_logits(path))) == 0, cache_gb
            assert engine.stats.misses > 0


@pytest.mark.parametrize("model", FIRST, ids=str)
def test_a_full_cache_never_misses(checkpoint: Make, resident_logits: Logits, model: tuple[str, int | str | None]) -> None:
    path = checkpoint(*model)
    with load(path, Knobs(cache_gb=footprint(path).all_experts_gb)) as engine:
        assert np.max(np.abs(both_phases(engine) - resident_logits(path))) == 0
        assert engine.stats.misses == 0


@pytest.mark.parametrize("sync_window", [2, "auto"])
@pytest.mark.parametrize("family", ["kimi_k2", "qwen3_5_moe", "nemotron_h"])
def test_windows_count_like_checking_every_layer(
    checkpoint: Make, resident_logits: Logits, family: str, sync_window: int | str
) -> None:
    path = checkpoint(family, "original")
    for cache_gb in cache_sizes(path)[:2]:
        with load(path, Knobs.from_mapping({"cache_gb": cache_gb, "sync_window": sync_window})) as engine:
            assert np.max(np.abs(both_phases(engine) - resident_logits(path))) == 0, cache_gb
            assert engine.stats.passes > engine.stats.windows > 0
        with load(path, Knobs(cache_gb=cache_gb)) as classic:
            both_phases(classic)
        assert engine.stats.hits + engine.stats.misses == classic.stats.hits + classic.stats.misses


@pytest.mark.parametrize("family", ORIGINALS)
def test_the_reference_is_mlx_lm(checkpoint: Make, family: str) -> None:
    """mlx-lm opens the originals unchanged; both they and the stacked layout give its logits."""
    paths = checkpoint(family, "original"), checkpoint(family)
    model, _ = load_model(paths[0])
    model.set_dtype(mx.float32)
    expected = np.array(model(mx.array(TOKENS)[None])[0])
    for path in paths:
        with load(path) as resident:
            assert np.array_equal(resident.logits(TOKENS), expected)


def test_kimi_int4_original_under_other_knobs(checkpoint: Make, resident_logits: Logits) -> None:
    """compressed-tensors codes and scales, from which the biases are derived."""
    path = checkpoint("kimi_k25", "int4")
    assert footprint(path).expert_bits == 4 and Checkpoint.open(path).layers[0].zeros
    with load(path, Knobs(cache_gb=cache_sizes(path)[0], prefetch="stale_gate")) as engine:
        assert np.max(np.abs(both_phases(engine) - resident_logits(path))) == 0
    with load(path, Knobs(expert_bits=2)) as whole, load(path, Knobs(expert_bits=2, cache_gb=cache_sizes(path)[1])) as part:
        assert np.max(np.abs(both_phases(whole) - both_phases(part))) == 0


@pytest.mark.parametrize(
    "other",
    [
        {"prefetch": "stale_gate"}, {"prefetch": "stale_gate", "prefetch_depth": 3, "prefetch_width": 2},
        {"prefetch": "stale_gate", "prefetch_depth": 0}, {"cache_layer_shape": 0.5}, {"evict_half_life": 1e-6},
        {"evict_half_life": 1e9},
        {"read_block_kib": 4}, {"read_threads": 1}, {"io_mode": "direct"}, {"ssd_gbps": 0.5},
    ],
)  # fmt: skip
def test_lossless_knobs_do_not_change_logits(checkpoint: Make, resident_logits: Logits, other: dict[str, object]) -> None:
    path = checkpoint("deepseek_v3", None, True)
    for cache_gb in cache_sizes(path)[:2]:
        with load(path, Knobs.from_mapping({"cache_gb": cache_gb, **other})) as engine:
            assert np.max(np.abs(both_phases(engine) - resident_logits(path))) == 0


@pytest.mark.parametrize(
    "lossy", [{"expert_bits": 4}, {"expert_bits": 8, "cold_bits": 2}, {"cold_bits": 3, "hot_share": 0.5}]
)
@pytest.mark.parametrize(("family", "bits", "per_expert"), [("deepseek_v3", None, True), ("qwen3_moe", 8, False)])
def test_a_lossy_model_is_equal_streamed_and_resident(
    checkpoint: Make, family: str, bits: int | str | None, per_expert: bool, lossy: dict[str, int],
) -> None:  # fmt: skip
    path = checkpoint(family, bits, per_expert)
    with load(path) as reference, load(path, Knobs(**lossy)) as resident:
        expected = both_phases(resident)
        assert np.max(np.abs(both_phases(reference) - expected)) > 1e-3
    others: tuple[dict[str, Any], ...] = ({"prefetch": "stale_gate"}, {"sync_window": 0})
    for cache_gb, other in zip(cache_sizes(path, Knobs(**lossy)), others, strict=False):
        with load(path, Knobs.from_mapping({"cache_gb": cache_gb, **other, **lossy})) as engine:
            assert np.max(np.abs(both_phases(engine) - expected)) == 0


def test_quantizing_on_load_equals_mlx_quantization(checkpoint: Make) -> None:
    path = checkpoint("qwen3_moe", None, False)
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    for layer in model.layers:
        switch = layer.mlp.switch_mlp
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(switch, name, getattr(switch, name).to_quantized(group_size=64 if name != "down_proj" else 32, bits=4))
    with load(path, Knobs(expert_bits=4)) as engine:
        assert np.array_equal(engine.logits(TOKENS), np.array(model(mx.array(TOKENS)[None])[0]))


@pytest.mark.parametrize("sync_window", [1, "all"])
@pytest.mark.parametrize("model", [("deepseek_v3", None, True), ("qwen3_5_moe", "original"), ("kimi_k25", "int4")], ids=str)
def test_a_wrong_expert_is_noticed(
    checkpoint: Make, resident_logits: Logits, monkeypatch: pytest.MonkeyPatch, model: tuple[str, str | None],
    sync_window: int | str,
) -> None:  # fmt: skip
    """The negative control: with one tensor's experts shifted by one, identity must fail."""

    def shifted(slots: Slots) -> list[tuple[Any, ...]]:
        (file, offset, *rest), *others = sources(slots)
        return [(file, np.roll(offset, 1), *rest), *others]

    sources = Slots.sources
    path = checkpoint(*model)
    for cache_gb in cache_sizes(path)[:2]:
        with monkeypatch.context() as patch:
            patch.setattr(Slots, "sources", shifted)
            engine = load(path, Knobs.from_mapping({"cache_gb": cache_gb, "sync_window": sync_window}))
        with engine:
            assert np.max(np.abs(both_phases(engine) - resident_logits(path))) > 1e-3
