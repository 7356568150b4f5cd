"""Gating: neutral values change nothing; other values equal a plain reimplementation beside the resident model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pandas as pd
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from tiny import CONFIGS

from engine import Judge, KnobError, Knobs, footprint, load
from engine.measure.judge import Text
from engine.streaming.layer import StreamedLayer

Make = Callable[..., Path]
IDS = [int(i) for i in np.random.default_rng(5).integers(0, 250, 36)]
CHUNK, DECODED = 8, 12
TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT[:30], TEXT[:30]), Text("b", "prose", TEXT[::-1][:30], TEXT[30:50])))


def small(path: Path, times: float = 1.5, **knobs: Any) -> Knobs:
    """Knobs with a cache a little larger than one token's experts."""
    return Knobs.from_mapping({"cache_gb": footprint(path).one_token_gb * times, "prefill_chunk": CHUNK, **knobs})


def both_phases(model: nn.Module) -> np.ndarray:
    """Logits of a prefill in chunks and of the decoding after it."""
    cache, parts = make_prompt_cache(model), []
    cuts = [*range(0, len(IDS) - DECODED, CHUNK), *range(len(IDS) - DECODED, len(IDS)), len(IDS)]
    for begin, end in itertools.pairwise(cuts):
        parts.append(np.array(model(mx.array([IDS[begin:end]]), cache=cache)[0].astype(mx.float32)))
    return np.concatenate(parts)


def plain(path: Path) -> nn.Module:
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_neutral_values_change_nothing(checkpoint: Make, family: str) -> None:
    """Zero, the model's own top_k, and values too small to matter; with the latter the gates decide everything."""
    path = checkpoint(family)
    with load(path) as resident:
        expected, own = both_phases(resident.model), resident.checkpoint.top_k
    for knobs in ({"cold_drop": 0.0, "cache_prior": 0.0, "top_k": own}, {"cold_drop": 1e-9, "cache_prior": 1e-9}):
        with load(path, small(path, **knobs)) as engine:
            assert all((s.gates is None) == (knobs["cold_drop"] == 0) for s in engine.layers)
            assert np.max(np.abs(both_phases(engine.model) - expected)) == 0
            assert engine.stats.misses > 0 == engine.stats.dropped == engine.stats.swapped


class Reference(nn.Module):
    """A block of the plain model that applies the knobs by hand, token by token and expert by expert.

    `cached` yields the experts that were cached at each of its calls."""

    def __init__(self, block: Any, cached: Iterator[set[int]], cold_drop: float, cache_prior: float) -> None:
        super().__init__()
        self._block, self._cached, self._drop, self._prior = block, cached, cold_drop, cache_prior
        self._kind = type(block).__name__
        self._dropped = self._swapped = 0

    def __call__(self, x: mx.array) -> mx.array:
        block, flat = self._block, x.reshape(-1, x.shape[-1])
        if self._kind == "DeepseekV3MoE":
            weights = np.array(mx.sigmoid(flat @ block.gate.weight.T))
            ranked_by, top_k = weights + np.array(block.gate.e_score_correction_bias), block.num_experts_per_tok
        else:
            weights = np.array(mx.softmax(block.gate(flat), axis=-1, precise=True))
            ranked_by, top_k = weights, block.top_k
        ranked = np.argsort(-ranked_by, axis=-1)
        chosen = [list(map(int, r[:top_k])) for r in ranked]
        cached = next(self._cached)
        final = self._swap(chosen, [list(map(int, r[top_k : 2 * top_k])) for r in ranked], weights, cached)
        wanted, shares = set(cached), []
        for token, experts in enumerate(final):
            total = sum(weights[token, e] for e in experts)
            shares.append({e: weights[token, e] / total for e in experts})
            first = max(chosen[token], key=lambda e: weights[token, e])
            wanted |= {e for e in experts if e == first or shares[-1][e] >= self._drop / top_k}
        outputs = []
        for token, experts in enumerate(final):
            kept = [e for e in experts if e in wanted]
            self._dropped += len(experts) - len(kept)
            scale = 1.0
            if self._kind == "DeepseekV3MoE":
                scale = block.gate.routed_scaling_factor / sum(weights[token, e] for e in kept)
            elif block.norm_topk_prob:
                scale = 1 / sum(weights[token, e] for e in kept)
            each = block.switch_mlp(flat[token][None, None], mx.array([[kept]]))[0, 0]
            outputs.append(sum(each[i] * float(weights[token, e] * scale) for i, e in enumerate(kept)))
        y = mx.stack(outputs).reshape(x.shape)
        return y + block.shared_experts(x) if "shared_experts" in block else y

    def _swap(
        self, chosen: list[list[int]], others: list[list[int]], weights: np.ndarray, cached: set[int]
    ) -> list[list[int]]:
        there = set(cached)
        while self._prior:
            final = []
            for w, mine, rest in zip(weights, chosen, others, strict=True):
                ours, theirs = sorted(mine, key=lambda e: -w[e]), sorted(rest, key=lambda e: -w[e])
                logits = dict(zip([*ours, *theirs], sorted(np.log(w[[*ours, *theirs]]), reverse=True), strict=True))
                rise = self._prior * (max(logits.values()) - min(logits.values()))
                free, new = [e for e in theirs if e in there], list(mine)
                for expert in reversed([e for e in ours[1:] if e not in there]):
                    if free and logits[free[0]] + rise > logits[expert]:
                        new[new.index(expert)] = free.pop(0)
                final.append(new)
            read = {e for experts in final for e in experts} - there
            if not read or len(chosen) == 1:
                self._swapped += int((np.array(chosen) != np.array(final)).sum())
                return final
            there |= read
        return chosen


@pytest.mark.parametrize(
    "knobs", [{"cold_drop": 1.0}, {"cache_prior": 0.5}, {"cold_drop": 1.0, "cache_prior": 0.1}], ids=str
)
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe", "olmoe"])
def test_gating_equals_a_plain_reimplementation(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, family: str, knobs: dict[str, float]
) -> None:
    """Sigmoid with bias and scale, normalized softmax, and plain softmax; the cached experts come from the tables."""
    path = checkpoint(family)
    seen: dict[int, list[set[int]]] = {}
    call = StreamedLayer.__call__

    def noted(stream: StreamedLayer, *args: mx.array) -> mx.array:
        seen.setdefault(stream.number, []).append(set(np.flatnonzero(stream.cache.slot_of >= 0).tolist()))
        return call(stream, *args)

    monkeypatch.setattr(StreamedLayer, "__call__", noted)
    with load(path, small(path, **knobs)) as engine:
        result, stats = both_phases(engine.model), engine.stats
        assert seen.keys() == {s.number for s in engine.layers}
    model = plain(path)
    blocks = [layer for layer in model.layers if "gate" in layer.mlp]
    for number, layer in enumerate(blocks):
        layer.mlp = Reference(layer.mlp, iter(seen[number]), **{"cold_drop": 0.0, "cache_prior": 0.0, **knobs})
    assert np.max(np.abs(both_phases(model) - result)) < 2e-4
    assert np.max(np.abs(both_phases(plain(path)) - result)) > 0.05
    assert stats.dropped == sum(layer.mlp._dropped for layer in blocks) > 0 or "cold_drop" not in knobs
    assert stats.swapped == sum(layer.mlp._swapped for layer in blocks) > 0 or "cache_prior" not in knobs


@pytest.mark.parametrize(
    ("family", "prefetch"),
    [("qwen3_moe", {}), ("kimi_k2", {"prefetch": "stale_gate", "prefetch_depth": 2, "prefetch_width": 2})],
    ids=str,
)
def test_the_same_tokens_give_the_same_logits(checkpoint: Make, family: str, prefetch: dict[str, Any]) -> None:
    """The result does not depend on threads or on earlier computation. Tokens are decoded, so prefetch works."""
    path = checkpoint(family)
    knobs = {"cold_drop": 0.8, "cache_prior": 0.3, "prefill_chunk": 1, **prefetch}
    runs = []
    for threads in (16, 16, 2):
        with load(path, small(path, read_threads=threads, **knobs)) as engine:
            if threads == 2:
                engine.measure(JUDGE)
            runs += [engine.logits(IDS[:24]), engine.logits(IDS[:24])]
            assert engine.stats.dropped and engine.stats.swapped and (engine.stats.prefetch_useful or not prefetch)
    assert all(np.array_equal(r, runs[0]) for r in runs)


def test_a_measurement_counts_what_was_left_out(checkpoint: Make) -> None:
    path = checkpoint("deepseek_v3")
    measured = {}
    for name, knobs in {"none": {}, "drop": {"cold_drop": 1.0}, "prior": {"cache_prior": 0.5}}.items():
        with load(path, small(path, **knobs)) as engine:
            first, m = engine.measure(JUDGE), engine.measure(JUDGE)
        assert (m.nll == first.nll and m.bytes_read == first.bytes_read) or name == "none"
        assert m.hits + m.misses + m.dropped == m.decode_tokens * 3 * 4
        assert m.bytes_read == m.misses * 3 * 64 * 32 * 2
        measured[name] = m
    none, drop, prior = measured.values()
    assert (none.dropped, none.dropped_share, none.swapped) == (0, 0, 0)
    assert drop.dropped > 0 == drop.swapped and 0 < drop.dropped_share < drop.dropped / (drop.decode_tokens * 3 * 4)
    assert prior.swapped > 0 == prior.dropped and prior.hits > none.hits
    assert max(drop.bytes_per_token, prior.bytes_per_token) < none.bytes_per_token
    with load(path) as engine:
        assert engine.measure(JUDGE).dropped_share is None


def test_a_trace_has_the_routers_own_choice(checkpoint: Make, tmp_path: Path) -> None:
    path = checkpoint("qwen3_moe")
    with load(path, small(path, cold_drop=1.0, cache_prior=0.3)) as engine:
        expected = engine.logits(IDS)
        with engine.trace(tmp_path / "t.parquet"):
            assert np.array_equal(engine.logits(IDS), expected)
        assert engine.stats.dropped > 0
    rows = pd.read_parquet(tmp_path / "t.parquet")
    assert len(rows) == len(IDS) * 5 * 3  # all top-k experts of every token and layer
    assert np.allclose(rows.groupby(["token", "layer"]).gate_weight.sum(), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"cold_drop": 0.5}, "cold_drop=0.5 has no effect while every expert is resident; set cache_gb"),
        ({"cache_gb": 1, "cold_drop": 0.5}, "cold_drop=0.5 has no effect with cache_gb=1, which holds every expert"),
        ({"cache_gb": 1, "cache_prior": 0.5}, "cache_prior=0.5 has no effect with cache_gb=1, which holds every expert"),
        ({"cache_gb": 1, "cold_drop": 1.6}, "cold_drop=1.6 is outside 0 .. 1.5"),
        ({"cache_gb": 1, "cache_prior": -0.1}, "cache_prior=-0.1 is below 0 or not finite"),
        ({"cache_gb": 1, "cache_prior": float("inf")}, "cache_prior=inf is below 0 or not finite"),
        ({"cache_gb": 1, "cold_drop": 0.5, "sync_window": 4}, "cold_drop=0.5 is not possible with sync_window=4"),
        ({"cache_gb": 1, "cache_prior": 1, "sync_window": 0}, "cache_prior=1 is not possible with sync_window=all"),
        ({"top_k": 0}, "top_k=0 is out of range: it must be above 0"),
        ({"top_k": 5}, "top_k=5 is above the 4 experts per token of deepseek_v3-bf16; use at most 4"),
        ({"resident_bits": 7}, "resident_bits=7 is not a width that MLX supports; use one of 2, 3, 4, 5, 6, 8"),
    ],
)
def test_refused(checkpoint: Make, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError) as e:
        load(checkpoint("deepseek_v3"), Knobs.from_mapping(knobs))
    assert str(e.value).startswith(message) and "\n" not in str(e.value)
