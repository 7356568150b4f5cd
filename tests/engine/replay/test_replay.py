"""Replay: the figures equal those of a measurement to the last unit, whatever a lossless knob is set to.

With prefetch, a read whose slot is taken before it begins is not read. Whether that happens depends on time, so reads and
bytes are then compared within the bytes that no layer used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make
from traces import routing, write_trace

from engine import Checkpoint, HeadraceError, Judge, KnobError, Knobs, Measurement, Protocol, footprint, load
from engine.knobs import LOSSY as LOSSY_KNOBS
from engine.measure.judge import Text
from engine.packing.pack import pack_store
from engine.replay.replay import replay
from engine.replay.result import ReplayResult
from engine.replay.sizes import Sizes
from engine.routing.traces.ahead import ahead_for
from engine.routing.traces.recording import Recording, read_recording
from engine.system.shipped import EVALUATION_TEXTS, KIMI_MINI

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT, TEXT[:20]), Text("b", "prose", TEXT[::-1], TEXT[30:60])))
PROTOCOL = Protocol(warm_up_tokens=5, timed_tokens=36, score=False)
SAME = ("hits", "misses", "layers_missed_per_token", "prefetch_issued", "prefetch_useful", "prefetch_wasted_bytes", "slots")

# A share of the experts that one token does not need, and the knobs.
LOSSLESS: list[tuple[float, dict[str, Any]]] = [
    (0.0, {}),
    (0.4, {}),
    (0.2, {"evict_half_life": 2}),
    (0.2, {"evict_half_life": 1e9, "cache_layer_shape": 0.9}),
    (0.7, {"cache_layer_shape": -0.9}),  # some layers hold every expert
    (0.4, {"pinned_share": 0.5}),
    (0.2, {"io_mode": "direct", "read_block_kib": 4}),
    (0.2, {"read_block_kib": 4, "prefill_chunk": 32}),
    (0.3, {"prefill_chunk": 7, "pinned_share": 0.3, "evict_half_life": 4}),
    (0.3, {"prefetch": "stale_gate"}),
    (0.2, {"prefetch": "stale_gate", "prefetch_depth": 2, "io_mode": "direct"}),
    (0.2, {"prefetch": "stale_gate", "prefetch_width": 1.5, "prefill_chunk": 16, "evict_half_life": 3}),
    (0.6, {"prefetch": "stale_gate", "prefetch_depth": 2, "pinned_share": 0.4, "cache_layer_shape": 0.5}),
    (0.3, {"prefetch": "stale_gate", "prefetch_depth": 0}),
]
LOSSY: list[tuple[str, int | str | None, dict[str, Any]]] = [
    ("deepseek_v3", 8, {"expert_bits": 4}),
    ("deepseek_v3", 8, {"cold_bits": 4, "hot_share": 0.4, "freq_exponent": 0}),
    ("deepseek_v3", 8, {"cold_bits": 4, "hot_share": 0.4, "freq_exponent": 0, "prefetch": "stale_gate"}),
    ("gpt_oss", None, {"prefetch": "stale_gate", "prefill_chunk": 64}),
    ("qwen3_moe", 8, {"top_k": 2, "resident_bits": 4}),
]


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def recording(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """One trace of everything resident, for all lossless settings."""
    file = tmp_path_factory.mktemp("traces") / "t.parquet"
    with load(path) as engine, engine.trace(file, ahead_for(2, [1, 1.5], 4)):
        engine.measure(JUDGE, PROTOCOL)
    return read_recording(file)


def cache(path: Path, share: float, **knobs: Any) -> float:
    found = footprint(path, Knobs(**knobs))
    return found.one_token_gb + share * (found.all_experts_gb - found.one_token_gb)


def compare(result: ReplayResult, measured: Measurement) -> None:
    """Reads and bytes are equal without prefetch."""
    figures, found = result.as_dict(), measured.as_dict()
    assert result.why_not == () and result.tokens == measured.decode_tokens == PROTOCOL.timed_tokens
    assert {name: figures[name] for name in SAME} == {name: found[name] for name in SAME}
    assert figures["hit_rate"] == pytest.approx(measured.hit_rate) and figures["cached_share"] == measured.cached_share
    assert result.misses > 0
    wasted = result.prefetch_wasted_bytes
    assert result.bytes_read - 2 * wasted <= measured.bytes_read <= result.bytes_read  # direct reads are whole units
    if not wasted:
        assert (result.reads, result.bytes_read) == (measured.reads, measured.bytes_read)


@pytest.mark.parametrize(("share", "knobs"), LOSSLESS)
def test_a_lossless_setting_is_replayed_from_the_references_trace(
    path: Path, recording: Recording, share: float, knobs: dict[str, Any]
) -> None:
    setting = Knobs(cache_gb=cache(path, share), **knobs)
    with load(path, setting) as engine:
        measured = engine.measure(JUDGE, PROTOCOL)
        chunk = engine.chunk.tokens
    compare(replay(recording, Checkpoint.open(path), setting, chunk=chunk, timed_tokens=PROTOCOL.timed_tokens), measured)


@pytest.mark.parametrize(("family", "bits", "knobs"), LOSSY)
def test_a_lossy_setting_is_replayed_from_its_own_trace(
    checkpoint: Callable[..., Path], tmp_path: Path, family: str, bits: int | str | None, knobs: dict[str, Any]
) -> None:
    path = checkpoint(family, bits)
    setting = Knobs(cache_gb=cache(path, 0.3, **{k: v for k, v in knobs.items() if k in LOSSY_KNOBS}), **knobs)
    with load(path, setting) as engine, engine.trace(tmp_path / "t.parquet"):
        measured = engine.measure(JUDGE, PROTOCOL)
    found, source = read_recording(tmp_path / "t.parquet"), Checkpoint.open(path)
    result = replay(found, source, setting)
    compare(result, measured)
    quantized = int(result.by_token["quantized"].sum())
    assert (quantized > 0) == ("expert_bits" in knobs or "cold_bits" in knobs) == bool(measured.quantize_ms)
    if "expert_bits" in knobs:
        assert quantized == result.misses
    other = replay(found, source, Knobs(cache_gb=setting.cache_gb, top_k=setting.top_k))
    assert other.exact == (not {*knobs} & {"expert_bits", "cold_bits", "resident_bits"})


def test_slices_of_large_codes_are_counted_and_exact(tmp_path: Path) -> None:
    """Codes of 384 KiB: from the page cache a miss has a read for each slice of each stream, and one for the rest."""
    sizes = {"hidden_size": 1024, "moe_intermediate_size": 768, "num_hidden_layers": 1}
    judge, protocol = Judge((Text("a", "prose", TEXT[:20], TEXT[20:40]),)), Protocol(timed_tokens=16, score=False)
    path, store = make(tmp_path / "large", "qwen3_moe", bits=4, sizes=sizes), tmp_path / "store"
    pack_store(path, store, (2, 4))
    prompt = list(range(20))
    with load(path) as resident:
        expected = resident.logits(prompt)
    for io_mode, reads in (("buffered", 3 * 2 * 2 + 1), ("direct", 2)):
        setting = Knobs(cache_gb=cache(store, 0.3), io_mode=io_mode, expert_bits=4)
        with load(store, setting) as engine:
            assert np.array_equal(engine.logits(prompt), expected)
            with engine.trace(tmp_path / f"{io_mode}.parquet"):
                measured = engine.measure(judge, protocol)
        result = replay(read_recording(tmp_path / f"{io_mode}.parquet"), Checkpoint.open(store), setting)
        assert (result.misses, result.reads, result.bytes_read) == (measured.misses, measured.reads, measured.bytes_read)
        assert measured.reads == reads * measured.misses > 0


def test_kimi_mini_is_replayed_in_a_moment(tmp_path: Path) -> None:
    """Direct reads of small blocks, on a trained model."""
    judge, protocol = Judge(Judge.load(EVALUATION_TEXTS).texts[:1]), Protocol(timed_tokens=16, score=False)
    with load(KIMI_MINI) as engine, engine.trace(tmp_path / "t.parquet"):
        engine.measure(judge, protocol)
    found, source = read_recording(tmp_path / "t.parquet"), Checkpoint.open(KIMI_MINI)
    setting = Knobs(cache_gb=0.02, io_mode="direct", read_block_kib=16, evict_half_life=8)
    with load(KIMI_MINI, setting) as engine:
        measured = engine.measure(judge, protocol)
    begin = time.process_time()
    result = replay(found, source, setting, chunk=measured.prefill_chunk_used)
    assert time.process_time() - begin < 1
    names = ("misses", "reads", "bytes_read", "layers_missed_per_token", "slots")
    assert [result.as_dict()[name] for name in names] == [getattr(measured, name) for name in names]
    assert result.exact and result.misses > 0


def test_a_made_up_trace_needs_sizes_only() -> None:
    """Two alternating sets of experts in each of three layers: with room for both, only their first uses miss."""
    experts = np.tile(np.array([[0, 1], [2, 3]])[:, None], (20, 3, 1))
    recording, sizes = Recording.made_up(experts, 2), Sizes(3, 8, 2, 1_000_000)
    result = replay(recording, sizes, Knobs(cache_gb=0.012, read_block_kib=400))
    assert (result.slots, result.misses, result.hit_rate, result.exact) == (12, 0, 1, True)
    result = replay(recording, sizes, Knobs(cache_gb=0.006, read_block_kib=400))
    assert (result.slots, result.tokens, result.misses, result.hit_rate) == (6, 38, 38 * 3 * 2, 0)
    assert (result.reads, result.bytes_read) == (result.misses * 3, result.misses * 1_000_000)
    assert result.by_token["layers_missed"].tolist() == [3] * 38
    direct = replay(recording, sizes, Knobs(cache_gb=0.006, io_mode="direct"))
    assert direct.bytes_read == result.misses * -(-1_000_000 // 4096) * 4096
    assert replay(recording, Sizes(3, 8, 2, 1_000_000, slot_bytes=500_000), Knobs(cache_gb=0.006)).slots == 12
    resident = replay(recording, sizes, Knobs())
    assert (resident.slots, resident.misses, resident.hit_rate) == (24, 0, 1)
    assert replay(recording, sizes, Knobs(cache_gb=0.006), timed_tokens=5).tokens == 5


def test_made_up_predictions_are_read_ahead() -> None:
    """Every prediction is right, so with prefetch only the first layer, which nothing predicts, misses."""
    experts = routing(40, 3, 2, 12)
    made = Recording.made_up(experts)
    right = np.roll(experts, -1, axis=1)
    recording = Recording(made.source, made.experts, made.passes, {(1, 2): right})
    sizes, knobs = Sizes(3, 12, 2, 1_000_000), Knobs(cache_gb=0.012, prefetch="stale_gate")
    result, off = replay(recording, sizes, knobs), replay(made, sizes, Knobs(cache_gb=0.012))
    assert result.exact and 0 < result.misses < off.misses and result.bytes_read == off.bytes_read
    assert result.prefetch_issued == off.misses - result.misses and result.prefetch_wasted_bytes == 0
    without = replay(made, sizes, knobs)
    assert not without.exact and (without.misses, without.prefetch_issued) == (off.misses, 0)


def test_what_cannot_be_exact_says_so(path: Path, recording: Recording, tmp_path: Path) -> None:
    source, gb = Checkpoint.open(path), cache(path, 0.3)
    plain = replay(recording, source, Knobs(cache_gb=gb))
    for knobs, reason in (
        ({"sync_window": 0}, "sync_window=all: what rejected passes read depends on what they compute; replayed as 1"),
        ({"cache_prior": 0.3}, "cache_prior=0.3: choices depend on what is cached; replayed without it"),
    ):
        result = replay(recording, source, Knobs(cache_gb=gb, **knobs))
        assert not result.exact and result.why_not[0] == reason and result.misses == plain.misses
    older = read_recording(write_trace(tmp_path / "t.parquet", recording.experts[5:], 100))
    result = replay(older, source, Knobs(cache_gb=gb))
    assert result.misses > 0 and result.as_dict()["exact"] is False
    assert result.why_not == (
        f"trace {tmp_path}/t.parquet: it has no passes and no warm-up: an earlier version recorded it",
    )


def test_mistakes_are_one_line(path: Path, recording: Recording) -> None:
    source = Checkpoint.open(path)
    with pytest.raises(HeadraceError, match=r"does not fit .*, which has 3 layers of 16 experts, top-2; give one that was"):
        replay(recording, source, Knobs(cache_gb=0.001, top_k=2))
    with pytest.raises(
        KnobError, match=r"cache_gb=1e-06 is below one token's experts \(.* GB for .* at 16 bits\); raise it"
    ):
        replay(recording, source, Knobs(cache_gb=1e-6))
    with pytest.raises(KnobError, match=r"pinned_share=0\.2 has no effect with cache_gb=9, which holds every expert"):
        replay(recording, Sizes(3, 16, 4, 1000), Knobs(cache_gb=9, pinned_share=0.2))
    with pytest.raises(KnobError, match="expert_bits=4 cannot be replayed from the sizes of one width; give a model, or"):
        replay(recording, Sizes(3, 16, 4, 1000), Knobs(cache_gb=1e-5, expert_bits=4))
