"""Enlarge: what follows the timed part costs the same nats with a larger cache as with the timed setting's, bit by bit.

A covering set: each family with another lossy or lossless knob, each knob with one family, timing that ends within a text.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine import Engine, HeadraceError, Judge, Knobs, Measurement, Protocol, footprint, load
from engine.cache_state import enlarge as module
from engine.knobs import CACHE_DEPENDENT
from engine.measure.judge import Text
from engine.plan.footprint import Weights
from engine.prompt_cache.kept import Keeping
from engine.quality.quality import quality
from engine.quality.reference import take_reference
from engine.routing.forced import force

Make = Callable[..., Path]
TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge(tuple(Text(str(n), "prose", TEXT[35 + 7 * n :], TEXT[n : n + 15]) for n in range(3)))
PROTOCOL = Protocol(warm_up_tokens=2, timed_tokens=20)  # it ends in the second of three texts, each of 14 decoded tokens
ROOM_GB = 1e3
QUALITY = ("perplexity", "perplexity_se", "nll", "scored_tokens", "token_nll")
TIMED = ("timed_nll", "hits", "misses", "slots", "cached_share", "hit_rate", "decode_tokens", "mode")
READ = ("reads", "bytes_read")  # with prefetch they depend on which reads ended in time
TWO_WIDTHS = {"expert_bits": 4, "cold_bits": 2, "hot_share": 0.4, "freq_exponent": 0}
SETTINGS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("deepseek_v3", None, True), {"expert_bits": 4}),
    (("deepseek_v3", "mixed"), {"resident_bits": 3}),
    (("kimi_k2", "int4"), {"prefetch": "stale_gate", "prefetch_depth": 2}),
    (("kimi_k25", 4), {"sync_window": 3}),
    (("gpt_oss", "mxfp4"), {"top_k": 1}),
    (("qwen3_moe", 8), TWO_WIDTHS),
    (("qwen3_next", 4), {"expert_bits": 3, "resident_bits": 3, "top_k": 2}),
    (("nemotron_h", 4), {"expert_bits": 2, "prefill_chunk": 32}),
    (("lfm2_moe", 8), {"expert_bits": 6, "io_mode": "direct"}),
    (("glm4_moe", 8), {"cold_bits": 3, "sync_window": "all"}),
    (("mixtral", 4, False, 128), {"pinned_share": 0.3, "ssd_gbps": 2.0}),
    (("minimax", "mxfp8"), {"evict_half_life": 1, "cache_layer_shape": 0.3}),
]


def setting(path: Path, knobs: dict[str, Any], share: float = 0.2) -> Knobs:
    """The knobs with a cache for this share of the experts beyond one token's."""
    lossy = Knobs.from_mapping({**knobs, "cache_gb": 1.0}).lossy
    sizes = footprint(path, Knobs(**{name: value for name, value in lossy.items() if name not in CACHE_DEPENDENT}))
    return Knobs.from_mapping({**knobs, "cache_gb": cache_of(sizes, share)})


def cache_of(sizes: Any, share: float) -> float:
    return float(sizes.one_token_gb + share * (sizes.all_experts_gb - sizes.one_token_gb))


def measured(
    path: Path, knobs: Knobs, limit_gb: float | None, protocol: Protocol = PROTOCOL, **given: Any
) -> Measurement:  # fmt: skip
    with load(path, knobs) as engine:
        return engine.measure(JUDGE, protocol, scoring_limit_gb=limit_gb, **given)


def check_equal(larger: Measurement, own: Measurement, knobs: Knobs) -> None:
    for name in (*QUALITY, *TIMED, *(READ if knobs.prefetch == "off" else ())):
        assert getattr(larger, name) == getattr(own, name), name
    assert own.perplexity is not None and len(own.token_nll or ()) == own.scored_tokens


@pytest.mark.parametrize(("model", "knobs"), SETTINGS, ids=lambda value: str(value)[:40])
def test_a_larger_cache_scores_the_same(checkpoint: Make, model: tuple[Any, ...], knobs: dict[str, Any]) -> None:
    path = checkpoint(*model)
    some = setting(path, knobs)
    own, larger = measured(path, some, None), measured(path, some, ROOM_GB)
    check_equal(larger, own, some)
    assert own.scoring_cached_share == own.cached_share < 1 == larger.scoring_cached_share


@pytest.mark.parametrize("knobs", [{}, {"expert_bits": 2}, TWO_WIDTHS, {"expert_bits": 4, "verify_reads": True}], ids=str)
def test_a_larger_cache_of_a_packed_store_scores_the_same(packed: Path, knobs: dict[str, Any]) -> None:
    some = setting(packed, knobs)
    own, larger = measured(packed, some, None), measured(packed, some, ROOM_GB)
    check_equal(larger, own, some)
    assert own.scoring_cached_share == own.cached_share < 1 == larger.scoring_cached_share


@pytest.mark.parametrize("knobs", [{"expert_bits": 4}, TWO_WIDTHS, {"prefetch": "stale_gate"}], ids=str)
def test_where_not_all_experts_fit_the_largest_cache_scores_the_same(
    checkpoint: Make, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("deepseek_v3", None, True)
    some = setting(path, knobs, 0.0)
    own = measured(path, some, None)
    monkeypatch.setattr(module, "cache_within", lambda weights, room: cache_of(weights, 0.6))
    larger = measured(path, some, ROOM_GB)
    check_equal(larger, own, some)
    assert own.cached_share < 0.5 < larger.scoring_cached_share < 1


def test_restored_prompts_and_early_endings_go_through_the_larger_cache(checkpoint: Make, tmp_path: Path) -> None:
    path = checkpoint("deepseek_v3", None, True)
    some, seen = setting(path, {"expert_bits": 4}), []

    def keep_scoring(nll: list[Any], tok_s: float, peak_gb: float) -> bool:
        seen.append(sum(map(len, nll)))
        return len(seen) < 15

    kept = {"protocol": dataclasses.replace(PROTOCOL, prefill="restored"), "keeping": Keeping(folder=tmp_path)}
    own, larger = measured(path, some, None, **kept), measured(path, some, ROOM_GB, **kept)
    assert (own.prefill, larger.prefill) == ("untimed", "restored") and larger.scoring_cached_share == 1
    check_equal(larger, own, some)
    ended = measured(path, some, ROOM_GB, keep_scoring=keep_scoring)
    assert ended.scoring_stopped and ended.scoring_cached_share == 1 and ended.scored_tokens == seen[14]


def test_kl_is_the_same(checkpoint: Make) -> None:
    path = checkpoint("deepseek_v3", None, True)
    with load(path) as resident:
        reference = take_reference(resident, JUDGE)
    found = []
    for limit_gb in (None, ROOM_GB):
        with load(path, setting(path, {"expert_bits": 3})) as engine:
            engine.measure(JUDGE, Protocol(timed_tokens=20, score=False))
            with module.scoring_with(engine, JUDGE.tokens(engine.encode), limit_gb, 0, engine.decoded) as share:
                found.append(quality(engine, JUDGE, reference))
            assert share == 1 if limit_gb else share < 1
    assert found[0] == found[1] and found[0].kl > 0


def enlarged(engine: Engine, limit_gb: float = ROOM_GB, begun: int = 1) -> bool:
    with module.scoring_with(engine, JUDGE.tokens(engine.encode), limit_gb, begun, engine.decoded) as share:
        return share == 1


def test_an_engine_keeps_its_cache_where_a_larger_one_is_wrong_or_saves_nothing(checkpoint: Make, tmp_path: Path) -> None:
    path = checkpoint("deepseek_v3", None, True)
    short = Protocol(timed_tokens=5, score=False)
    for knobs in ({"cache_prior": 0.5}, {"cold_drop": 0.5}):  # what is cached decides what is computed
        with load(path, setting(path, knobs)) as engine:
            engine.measure(JUDGE, short)
            assert not enlarged(engine)
    with load(path, setting(path, {})) as engine:
        engine.measure(JUDGE, short)
        with engine.trace(tmp_path / "t.parquet"):
            assert not enlarged(engine)
            engine.logits([1, 2, 3])
        few = JUDGE.tokens(engine.encode)[:1]
        few[0] = few[0][0], few[0][1][:8]
        with module.scoring_with(engine, few, ROOM_GB, 1, engine.decoded) as share:
            assert share < 1  # two tokens are left
        assert enlarged(engine)
        with pytest.raises(HeadraceError, match="enlarged for scoring and is not that of the knobs; load the engine again"):
            engine.measure(JUDGE, short)
    with load(path, setting(path, {})) as engine:
        layers, top_k = len(engine.checkpoint.layers), engine.checkpoint.top_k
        force(engine, np.tile(np.arange(top_k, dtype=np.int32), (8, layers, 1)), None)
        engine.measure(JUDGE, short)
        assert not enlarged(engine)


def test_the_process_stays_within_the_limit(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is what the limit, less a tenth, leaves beside the process's peak, and what the machine has left."""
    path = checkpoint("deepseek_v3", None, True)
    sizes = footprint(path, context=2 * len(TEXT))
    monkeypatch.setattr(module, "footprint", lambda *_: sizes)  # about as large as the process of the test
    with load(path, setting(path, {})) as engine:
        own = engine.knobs.cache_gb or 0.0
        peak = sizes.predicted_peak_gb + 1

        def cache_gb(limit_gb: float, available: float = 1e12) -> float | None:
            monkeypatch.setattr(module, "peak_bytes", lambda: peak * 1e9)
            monkeypatch.setattr(module, "available_bytes", lambda: available)
            knobs = module._knobs(engine, limit_gb, 100)
            return None if knobs is None else knobs.cache_gb

        more = (sizes.all_experts_gb - own) / 2
        assert cache_gb((peak + 2 * more) / 0.9 + 1e-9) == sizes.all_experts_gb
        assert cache_gb((peak + more) / 0.9) == pytest.approx(own + more)
        assert cache_gb(peak / 0.9) is None and cache_gb(peak) is None and cache_gb(0.001) is None
        assert cache_gb(ROOM_GB, available=more * 1e9 / 0.8) == pytest.approx(own + more)
        high = dataclasses.replace(sizes, predicted_peak_gb=(peak + 2 * more) + more)
        monkeypatch.setattr(module, "footprint", lambda *_: high)  # the plan says more than the process has shown
        assert cache_gb((peak + 2 * more) / 0.9) == pytest.approx(own + more)


def test_the_smaller_cache_is_released(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slots are gone before the larger ones are made, windows and prefetch included, without a garbage collection."""
    path = checkpoint("kimi_k2", "int4")
    monkeypatch.setattr(module, "_saves", lambda *_: True)
    for knobs in ({}, {"prefetch": "stale_gate"}, {"sync_window": 3}):
        with load(path, setting(path, knobs, 0.9)) as engine:
            engine.measure(JUDGE, Protocol(timed_tokens=5, score=False))
            before, old = mx.get_active_memory(), engine.slots
            mx.reset_peak_memory()
            gc.disable()
            try:
                assert enlarged(engine, begun=0)
            finally:
                gc.enable()
            one = footprint(path).all_experts_gb / engine.checkpoint.experts * 1e9
            assert mx.get_peak_memory() - before < (engine.slots - old) * one + 0.3 * old * one  # pages, staging


def test_the_largest_useful_cache() -> None:
    weights = Weights(one_token_gb=1.0, all_experts_gb=8.0, resident_gb=2.0, cached_gb=3.0)
    assert [module.cache_within(weights, room) for room in (-1.0, 4.5, 9.0)] == [1.0, 4.5, 8.0]
