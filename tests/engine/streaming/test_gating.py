"""The knobs that trade quality for reads do what they say and nothing else: neutral at their neutral value, the same as a
plain reimplementation beside the resident model otherwise, and the same again with the same tokens."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pandas as pd
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import deepseek_v3
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.utils import load_model
from tiny import CONFIGS

from engine import Engine, Judge, KnobError, Knobs, footprint, load
from engine.measure.judge import Text
from engine.model.switches import switches
from engine.streaming.layer import StreamedLayer

Make = Callable[..., Path]
IDS = [int(i) for i in np.random.default_rng(5).integers(0, 250, 48)]
CHUNK, DECODED = 8, 24
TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until night. "
JUDGE = Judge((Text("a", "prose", TEXT[:30], TEXT[:30]), Text("b", "prose", TEXT[::-1][:30], TEXT[30:50])))


def small(path: Path, times: float = 1.5, **knobs: Any) -> Knobs:
    """Knobs with a cache a little larger than one token's experts."""
    return Knobs.from_mapping({"cache_gb": footprint(path).one_token_gb * times, "prefill_chunk": CHUNK, **knobs})


def both_phases(model: nn.Module) -> np.ndarray:
    """Logits of a prefill in chunks and of decoding after it."""
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
    """Neither unset nor so small that nothing comes of it, with everything decided by the gates."""
    path = checkpoint(family)
    with load(path) as resident:
        expected, own = both_phases(resident.model), resident.checkpoint.top_k
    for knobs in ({"cold_drop": 0.0, "cache_prior": 0.0, "top_k": own}, {"cold_drop": 1e-9, "cache_prior": 1e-9}):
        with load(path, small(path, **knobs)) as engine:
            assert all((s.gates is None) == (knobs["cold_drop"] == 0) for s in engine.layers)
            assert np.max(np.abs(both_phases(engine.model) - expected)) == 0
            assert engine.stats.misses > 0 == engine.stats.dropped == engine.stats.swapped


class Reference(nn.Module):
    """A block of the plain model with the knobs done by hand, one token and one expert after the other. `cached` yields
    which experts were cached at each of its calls."""

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
def test_it_is_what_a_plain_reimplementation_gives(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, family: str, knobs: dict[str, float]
) -> None:
    """Sigmoid with a bias and a scale, normalized softmax, and softmax as it is; what is cached is read off the tables."""
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
    """Whatever the threads do, and whatever was computed before on the same engine. Token by token: so prefetch works."""
    path = checkpoint(family)
    knobs = {"cold_drop": 0.8, "cache_prior": 0.3, "prefill_chunk": 1, **prefetch}
    runs = []
    for threads in (16, 16, 2):
        with load(path, small(path, read_threads=threads, **knobs)) as engine:
            if threads == 2:
                engine.measure(JUDGE)
            runs += [engine.logits(IDS), engine.logits(IDS)]
            assert engine.stats.dropped and engine.stats.swapped and (engine.stats.prefetch_useful or not prefetch)
    assert all(np.array_equal(r, runs[0]) for r in runs)


def test_a_measurement_says_what_was_left_out_and_asks_for_no_more(checkpoint: Make) -> None:
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
    assert len(rows) == len(IDS) * 5 * 3  # of every token and layer all of its top-k
    assert np.allclose(rows.groupby(["token", "layer"]).gate_weight.sum(), 1, atol=1e-5)


@pytest.mark.parametrize("family", ["deepseek_v3", "kimi_k25", "gpt_oss", "granitemoe", "olmoe"])
def test_top_k_is_what_config_could_say(checkpoint: Make, tmp_path: Path, family: str) -> None:
    path = checkpoint(family)
    fewer = footprint(path).top_k - 1
    twin = Path(shutil.copytree(path, tmp_path / "twin"))
    config = json.loads((twin / "config.json").read_text())
    config.get("text_config", config)["num_experts_per_tok"] = fewer
    (twin / "config.json").write_text(json.dumps(config))
    with load(twin) as engine:
        expected = engine.logits(IDS)
    assert footprint(path, Knobs(top_k=fewer)).one_token_gb == footprint(twin).one_token_gb
    smallest = Knobs(cache_gb=footprint(twin).one_token_gb, top_k=fewer, prefetch="stale_gate", prefetch_width=1.5)
    for knobs in (Knobs(top_k=fewer), smallest, Knobs(cache_gb=smallest.cache_gb, top_k=fewer, sync_window=0)):
        with load(path, knobs) as engine:
            assert np.array_equal(engine.logits(IDS), expected)
            assert engine.checkpoint.top_k == fewer and engine.mode.startswith(("resident", "streamed"))
    with load(path, Knobs(cache_gb=footprint(path).all_experts_gb, top_k=fewer)) as engine:
        assert engine.measure(JUDGE).hits == sum(len(t.continuation) - 1 for t in JUDGE.texts) * len(engine.layers) * fewer


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize(
    ("family", "stored"), [("deepseek_v3", None), ("granitemoe", None), ("qwen3_next", None), ("kimi_k25", "original")]
)
def test_resident_bits_is_mlx_own_quantization(checkpoint: Make, family: str, stored: str | None, bits: int) -> None:
    path = checkpoint(family, stored)
    model = plain(path)
    own = getattr(model, "quant_predicate", lambda path, module: True)

    def chosen(name: str, module: Any) -> bool | dict[str, int]:
        router = name.endswith((".gate", "router.layer", "shared_expert_gate"))
        if (
            isinstance(module, SwitchLinear)
            or not hasattr(module, "to_quantized")
            or router
            or own(name, module) is not True
        ):
            return False
        columns = module.weight.shape[-1]
        return columns % 32 == 0 and {"group_size": 64 if columns % 64 == 0 else 32, "bits": bits}

    nn.quantize(model, class_predicate=chosen)
    expected = np.array(model(mx.array([IDS]))[0])
    for knobs in (Knobs(resident_bits=bits), Knobs(resident_bits=bits, cache_gb=footprint(path).one_token_gb)):
        with load(path, knobs) as engine:
            assert np.array_equal(engine.logits(IDS), expected)
            assert resident_bytes(engine) == round(footprint(path, knobs).resident_gb * 1e9)
    with load(path) as engine:
        assert resident_bytes(engine) == round(footprint(path).resident_gb * 1e9) > resident_bytes_of(model)


def resident_bytes(engine: Engine) -> int:
    experts = tuple(f"{path}." for path, _ in switches(engine.model, engine.checkpoint))
    return sum(v.nbytes for name, v in tree_flatten(engine.model.parameters()) if not name.startswith(experts))


def resident_bytes_of(model: nn.Module) -> int:
    experts = (SwitchLinear, QuantizedSwitchLinear)
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, experts))
    return sum(v.nbytes for name, v in tree_flatten(model.parameters()) if not name.startswith(inside))


def test_resident_bits_below_those_stored(checkpoint: Make) -> None:
    """What is quantized at more bits is brought from those to fewer; what has as few stays; routers stay."""
    path = checkpoint("qwen3_moe", 8)
    model = plain(path)
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding) and not name.endswith(".gate"):
            wide = mx.dequantize(module.weight, module.scales, module.biases, group_size=32, bits=8)
            module.weight, module.scales, module.biases = mx.quantize(wide, 64, 4)
            module.group_size, module.bits = 64, 4
    with load(path, Knobs(resident_bits=4)) as engine:
        assert np.array_equal(engine.logits(IDS), np.array(model(mx.array([IDS]))[0]))
    with pytest.raises(KnobError, match=r"resident_bits=8 has no effect: no weights of qwen3_moe-8 except experts"):
        load(path, Knobs(resident_bits=8))


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


def by_compiled_sum(block: Any, x: mx.array) -> mx.array:
    ids, weights = block.gate(x)
    return mx.compile(lambda y, w: (y * w[..., None]).sum(axis=-2))(block.switch_mlp(x, ids), weights)


def by_maximum(block: Any, x: mx.array) -> mx.array:
    ids, weights = block.gate(x)
    return (block.switch_mlp(x, ids) * weights[..., None]).max(axis=-2)


@pytest.mark.parametrize("call", [by_compiled_sum, by_maximum])
@pytest.mark.parametrize("knob", ["cold_drop", "cache_prior"])
def test_a_block_that_weighs_in_a_way_of_its_own_is_refused(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, call: Callable[..., mx.array], knob: str
) -> None:
    path = checkpoint("deepseek_v3")
    monkeypatch.setattr(deepseek_v3.DeepseekV3MoE, "__call__", call)
    with load(path, small(path)) as engine:
        assert np.isfinite(engine.logits(IDS[:4])).all()
    with pytest.raises(KnobError) as e:
        load(path, small(path, **{knob: 0.5}))
    assert str(e.value) == (
        f"{knob}=0.5 is not possible for deepseek_v3: DeepseekV3MoE does not only sum its experts' outputs times the "
        "gate weights; leave it at 0"
    )


def test_a_router_that_cannot_be_asked_for_more_has_no_prior(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint("deepseek_v3")
    monkeypatch.setattr("engine.model.probe.TOP_K", ("unknown",))
    with load(path, small(path, cold_drop=0.5)) as engine:
        assert engine.layers[0].gates is not None
    with pytest.raises(KnobError, match=r"cache_prior=0.5 is not possible for deepseek_v3: the router of DeepseekV3MoE"):
        load(path, small(path, cache_prior=0.5))
