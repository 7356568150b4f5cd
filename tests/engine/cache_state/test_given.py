"""Given state: after recorded passes the cache is as after real ones, and the tokens decoded then miss and read the same."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from engine import Engine, HeadraceError, Knobs, footprint, load
from engine.cache_state.given import after_passes, dry_prefill, empty
from engine.routing.traces.recording import read_recording

RANDOM = np.random.default_rng(7)
TEXTS = [(RANDOM.integers(0, 255, n).tolist(), RANDOM.integers(0, 255, 9).tolist()) for n in (41, 64, 30)]
STACKED = ("deepseek_v3", None, True)
TWO = {"cold_bits": 4, "hot_share": 0.4, "freq_exponent": 0}


def lossy(knobs: dict[str, Any]) -> Knobs:
    return Knobs.from_mapping(Knobs.from_mapping({**knobs, "cache_gb": 1.0}).lossy)


Recorded = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[np.ndarray]]:
    """`recorded(path, knobs)`: the routing of every prompt with these lossy knobs, recorded with every expert in memory."""
    made: dict[tuple[Path, str], list[np.ndarray]] = {}

    def get(path: Path, knobs: dict[str, Any]) -> list[np.ndarray]:
        key = path, str(lossy(knobs))
        if key not in made:
            file = tmp_path_factory.mktemp("traces") / "t.parquet"
            with load(path, lossy(knobs)) as engine, engine.trace(file):
                for prompt, _ in TEXTS:
                    list(engine.forward.prefill(prompt, make_prompt_cache(engine.model)))
            ends = np.cumsum([len(prompt) for prompt, _ in TEXTS])
            made[key] = [part.astype(np.int16) for part in np.split(read_recording(file).experts, ends[:-1])]
        return made[key]

    return get


def state_of(engine: Engine) -> list[Any]:
    assert engine.state is not None
    guessed = [sorted(layer.cache.guessed()) for layer in engine.layers]
    return [engine.state.slot_of.copy(), engine.state.warmth.copy(), engine.uses.copy(), engine.state.position, guessed]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one[4] == other[4]


def misses_of(engine: Engine, continuation: list[int], cache: Any) -> tuple[list[list[int]], list[np.ndarray]]:
    """Hits, misses, reads, bytes and layers that missed of each decoded token, and its logits."""
    counts, logits = [], []
    for token in continuation:
        before = engine.stats.layers.sum(axis=0)
        logits.append(np.array(engine.forward.decode(token, cache)))
        counts.append((engine.stats.layers.sum(axis=0) - before).tolist())
    return counts, logits


def setting(path: Path, share: float, knobs: dict[str, Any]) -> Knobs:
    found = footprint(path, lossy(knobs))
    cache_gb = found.one_token_gb + share * (found.all_experts_gb - found.one_token_gb)
    return Knobs.from_mapping({**knobs, "cache_gb": cache_gb})


SETTINGS: list[tuple[Any, float, dict[str, Any]]] = [
    (STACKED, 0.0, {}),
    (STACKED, 0.4, {}),
    (STACKED, 0.3, {"evict_half_life": 2, "io_mode": "direct"}),
    (STACKED, 0.6, {"cache_layer_shape": -0.9, "evict_half_life": 1e9}),
    (STACKED, 0.4, {"pinned_share": 0.5, "prefill_chunk": 16}),
    (STACKED, 0.3, {"prefill_chunk": 7, "pinned_share": 0.3, "evict_half_life": 4}),
    (STACKED, 0.3, {"prefill_chunk": 32, "cache_layer_shape": 0.9}),
    (STACKED, 0.3, {"prefill_chunk": 40}),  # the last pass of the first prompt has one token
    (STACKED, 0.4, {"prefetch": "stale_gate"}),
    (STACKED, 0.4, {"prefetch": "stale_gate", "prefetch_depth": 2, "prefill_chunk": 16}),
    (("qwen3_moe", 4), 0.3, {"read_block_kib": 4}),
    (("qwen3_moe", 8), 0.3, {"top_k": 2, "resident_bits": 4}),
    (("deepseek_v3", 8), 0.3, {"expert_bits": 4}),
    (("deepseek_v3", 8), 0.4, {**TWO}),
    (("deepseek_v3", 8), 0.4, {**TWO, "pinned_share": 0.3, "prefill_chunk": 16}),
    (("gpt_oss", None), 0.3, {"prefill_chunk": 64}),
]


@pytest.mark.parametrize(("model", "share", "knobs"), SETTINGS)
def test_slots_and_misses_are_those_after_a_real_prefill(
    checkpoint: Callable[..., Path],
    recorded: Recorded,
    model: Any,
    share: float,
    knobs: dict[str, Any],
) -> None:
    _compare(checkpoint(*model), share, knobs, recorded)


@pytest.mark.parametrize("knobs", [{}, {"expert_bits": 4}, {**TWO, "verify_reads": True}])
def test_a_packed_store(store: Callable[..., Path], recorded: Recorded, knobs: dict[str, Any]) -> None:
    _compare(store("deepseek_v3", 8, levels=(4, 8)), 0.3, knobs, recorded)


def _compare(path: Path, share: float, knobs: dict[str, Any], recorded: Recorded) -> None:
    wanted = setting(path, share, knobs)
    with load(path, wanted) as real, load(path, wanted) as given:
        assert given.state is not None and any(not layer.complete for layer in given.layers)
        for (prompt, continuation), experts in zip(TEXTS, recorded(path, knobs), strict=True):
            cache = make_prompt_cache(real.model)
            list(real.forward.prefill(prompt, cache))
            copied = copy.deepcopy(cache)
            before, counted = state_of(given), given.stats.copy()
            filled = dry_prefill(given, experts, given.chunk.tokens)
            assert same(state_of(real), state_of(given)) and not same(before, state_of(given))
            assert given.stats.as_dict() == counted.as_dict()
            moved = int(((given.state.slot_of != before[0]) & (given.state.slot_of >= 0)).sum())
            assert filled.experts <= moved and (filled.bytes_read > 0) == (filled.experts > 0)
            expected, found = misses_of(real, continuation, cache), misses_of(given, continuation, copied)
            # With prefetch, a read whose slot is taken before it begins is not read, and whether it is depends on time.
            counts = [0, 1, 4] if "prefetch" in knobs else [0, 1, 2, 3, 4]
            assert np.array_equal(np.array(found[0])[:, counts], np.array(expected[0])[:, counts])
            assert same(state_of(real), state_of(given))
            assert all(np.array_equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def test_windows_miss_as_after_a_real_prefill(checkpoint: Callable[..., Path], recorded: Recorded) -> None:
    """The state after the first prompt is exact; what rejected passes read later depends on time."""
    path = checkpoint("qwen3_moe", 4)
    for size in (0, 2, -1):
        wanted = setting(path, 0.4, {"sync_window": size})
        with load(path, wanted) as real, load(path, wanted) as given:
            list(real.forward.prefill(TEXTS[0][0], make_prompt_cache(real.model)))
            dry_prefill(given, recorded(path, {})[0], given.chunk.tokens)
            assert same(state_of(real), state_of(given))


def test_several_prompts_are_filled_once(checkpoint: Callable[..., Path], recorded: Recorded) -> None:
    path = checkpoint(*STACKED)
    wanted, prompts = setting(path, 0.3, {}), recorded(path, {})
    with load(path, wanted) as one, load(path, wanted) as other:
        filled = after_passes(one, prompts, 16)
        each = [dry_prefill(other, experts, 16) for experts in prompts]
        assert same(state_of(one), state_of(other))
        assert filled.experts == (one.state.slot_of >= 0).sum() < sum(f.experts for f in each)
        assert after_passes(one, [], 16).experts == 0
        empty(one)
        assert (one.state.slot_of < 0).all() and one.state.position == 0 and np.isinf(one.state.warmth).all()
        again = after_passes(one, prompts, 16)
        assert again.experts == 0 and same(state_of(one)[:1] * 4 + [[]], state_of(other)[:1] * 4 + [[]])


def test_with_everything_resident_there_is_nothing_to_do(checkpoint: Callable[..., Path]) -> None:
    with load(checkpoint(*STACKED)) as engine:
        assert dry_prefill(engine, np.zeros((3, 3, 4), np.int16), 8).experts == 0
        empty(engine)


def test_mistakes_are_one_line(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(*STACKED)
    with load(path, setting(path, 0.3, {})) as engine:
        for experts in (np.zeros((3, 2, 4), int), np.full((3, 3, 4), 16), np.full((3, 3, 4), -2), np.zeros((3, 4), int)):
            with pytest.raises(HeadraceError, match="does not fit a model of 3 layers with 16 experts; record it again"):
                dry_prefill(engine, experts, 8)
    dropping = dataclasses.replace(setting(path, 0.3, {}), cold_drop=0.5)
    with load(path, dropping) as engine, pytest.raises(HeadraceError, match="with cold_drop depend on what is cached"):
        dry_prefill(engine, np.zeros((3, 3, 4), int), 8)
