"""What one does with an engine, and that every knob changes what its name says, each against the default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import CONFIGS

from engine import HeadraceError, Judge, JudgeError, KnobError, Knobs, Measurement, ReadError, footprint, load
from engine.measure.judge import Text
from engine.streaming.window.auto import AutoWindow

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until night. "
JUDGE = Judge((Text("a", "prose", TEXT, TEXT[:60]), Text("b", "prose", TEXT[::-1], TEXT[30:90])))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def quarter(path: Path) -> float:
    """A cache for a bit more than a third of the experts."""
    f = footprint(path)
    return f.one_token_gb + 0.2 * (f.all_experts_gb - f.one_token_gb)


def measured(path: Path, **knobs: Any) -> Measurement:
    with load(path, Knobs(**knobs)) as engine:
        return engine.measure(JUDGE)


def test_perplexity_is_what_the_logits_say(path: Path, quarter: float) -> None:
    with load(path, Knobs(cache_gb=quarter)) as engine:
        result = engine.measure(JUDGE)
        total = count = 0.0
        for text in JUDGE.texts:
            ids = engine.encode(text.prompt) + engine.encode(text.continuation, start=False)
            logits = engine.logits(ids).astype(np.float64)
            logp = (
                logits
                - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
                - logits.max(-1, keepdims=True)
            )
            total -= logp[np.arange(len(ids) - 1), ids[1:]].sum()
            count += len(ids) - 1
    assert result.scored_tokens == count
    assert result.perplexity == pytest.approx(np.exp(total / count), rel=1e-5)
    assert result.nll == pytest.approx(np.log(result.perplexity))


def test_a_measurement_is_whole(path: Path, quarter: float) -> None:
    result = measured(path, cache_gb=quarter)
    assert result.decode_tok_s > 0 and result.prefill_tok_s > 0
    assert result.decode_tokens == sum(len(t.continuation) - 1 for t in JUDGE.texts)
    assert result.hits + result.misses == result.decode_tokens * 3 * 4  # layers x top-k
    assert result.hit_rate == pytest.approx(result.hits / (result.hits + result.misses))
    assert result.bytes_read == result.misses * 3 * 64 * 32 * 2  # three bf16 projections
    assert result.bytes_per_token == pytest.approx(result.bytes_read / result.decode_tokens)
    assert result.eval_fingerprint == JUDGE.fingerprint
    assert result.mode == "streamed float32 cpu buffered"
    assert 0.05 < result.peak_memory_gb < 10 and result.mlx_peak_gb > 0
    assert result.cached_share == pytest.approx(result.slots / 48)


def test_the_reference_reads_nothing(path: Path) -> None:
    result = measured(path)
    assert (result.hit_rate, result.bytes_read, result.mode) == (None, 0, "reference float32 cpu")


def test_lossless_knobs_leave_perplexity_and_lossy_ones_move_it(path: Path, quarter: float) -> None:
    reference = measured(path).perplexity
    for knobs in ({}, {"prefetch": "stale_gate", "prefetch_depth": 2}, {"evict_half_life": 0.1}, {"io_mode": "direct"}):
        assert measured(path, cache_gb=quarter, **knobs).perplexity == pytest.approx(reference, rel=1e-6)
    by_bits = {b: abs(np.log(measured(path, cache_gb=quarter, expert_bits=b).perplexity / reference)) for b in (8, 2)}
    assert 0 < by_bits[8] < by_bits[2]
    mixed = abs(np.log(measured(path, cache_gb=quarter, expert_bits=8, cold_bits=2, hot_share=0.5).perplexity / reference))
    assert by_bits[8] != mixed != by_bits[2]


def test_a_larger_cache_hits_more_and_reads_less(path: Path) -> None:
    f = footprint(path)
    small, large = measured(path, cache_gb=f.one_token_gb), measured(path, cache_gb=f.all_experts_gb)
    assert small.hit_rate is not None and large.hit_rate is not None
    assert small.hit_rate < large.hit_rate and small.bytes_per_token > large.bytes_per_token
    assert large.mlx_peak_gb > small.mlx_peak_gb


def test_fewer_bits_fit_more_experts(path: Path, quarter: float) -> None:
    full, low = measured(path, cache_gb=quarter), measured(path, cache_gb=quarter, expert_bits=3)
    assert low.slots > full.slots and low.misses < full.misses


def test_half_life_changes_what_is_kept(path: Path, quarter: float) -> None:
    misses = {h: measured(path, cache_gb=quarter, evict_half_life=h).misses for h in (1e-3, 8, 1e9)}
    assert len(set(misses.values())) > 1


def test_prefetch_brings_experts_before_they_are_asked_for(path: Path, quarter: float) -> None:
    off, on = measured(path, cache_gb=quarter), measured(path, cache_gb=quarter, prefetch="stale_gate")
    assert off.prefetch_issued == 0 and off.prefetch_recall is None
    assert 0 < on.prefetch_useful < on.prefetch_issued
    assert on.misses < off.misses and on.bytes_read > off.bytes_read
    expert = 3 * 64 * 32 * 2
    assert on.prefetch_precision == on.prefetch_useful / on.prefetch_issued
    assert on.prefetch_wasted_bytes == (on.prefetch_issued - on.prefetch_useful) * expert
    assert 0 < on.prefetch_exact_set < on.prefetch_recall < 1
    assert 0 < on.prefetch_coverage < 1


def test_what_prefetch_hides_is_not_waited_for(path: Path, quarter: float) -> None:
    """A slow disk and a fast guess: reads run while the layer before computes or waits."""
    slow = {"cache_gb": quarter, "ssd_gbps": 0.002, "prefetch": "stale_gate"}
    assert measured(path, **slow).prefetch_hidden_ms > measured(path, **slow, prefetch_width=0.25).prefetch_hidden_ms > 0


def test_a_wider_prefetch_recalls_more(path: Path, quarter: float) -> None:
    recall = [
        measured(path, cache_gb=quarter, prefetch="stale_gate", prefetch_width=w).prefetch_recall for w in (0.5, 1, 1.5, 4)
    ]
    assert recall == sorted(recall) and recall[-1] == 1  # four times top-k are all 16 experts


def test_a_deeper_prefetch_asks_more_layers(path: Path, quarter: float) -> None:
    """Of three layers the last is foretold by both before it, and the farther one says some other things."""
    near, far = (measured(path, cache_gb=quarter, prefetch="stale_gate", prefetch_depth=d) for d in (1, 2))
    assert far.prefetch_recall > near.prefetch_recall and far.prefetch_issued != near.prefetch_issued


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_without_staleness_every_family_is_foretold_whole(checkpoint: Callable[..., Path], family: str) -> None:
    """The control: asked with a layer's own input, its router must say what the layer then chooses."""
    path = checkpoint(family, 4)
    result = measured(path, cache_gb=footprint(path).one_token_gb, prefetch="stale_gate", prefetch_depth=0)
    assert (result.prefetch_recall, result.prefetch_exact_set, result.prefetch_issued) == (1, 1, 0)


def test_pinned_experts_stay(path: Path, quarter: float) -> None:
    with load(path, Knobs(cache_gb=quarter, pinned_share=0.3, evict_half_life=1e-3)) as engine:
        pinned = [set(np.flatnonzero(bank.table._pinned)) for stream in engine.layers for bank in stream.cache.pools]
        engine.measure(JUDGE)
        for stream, stay in zip(engine.layers, pinned, strict=True):
            assert stay <= set(np.flatnonzero(engine.state.slot_of[stream.number] >= 0))
    assert all(len(stay) in (1, 2) for stay in pinned)


def test_the_shape_moves_cache_between_layers(path: Path, quarter: float) -> None:
    def slots(shape: float) -> list[int]:
        with load(path, Knobs(cache_gb=quarter, cache_layer_shape=shape)) as engine:
            return [bank.table.slots for stream in engine.layers for bank in stream.cache.pools]

    early, even, late = slots(0.5), slots(0), slots(-0.5)
    assert early[0] > even[0] >= late[0] and early[-1] <= even[-1] < late[-1]
    assert sum(early) == sum(even) == sum(late)


def test_a_prefill_reads_each_expert_once_a_chunk(path: Path) -> None:
    tokens = np.random.default_rng(3).integers(0, 255, 120)
    with load(path) as resident:
        expected = resident.logits(tokens)
    for chunk in (16, 120):
        with load(path, Knobs(cache_gb=footprint(path).one_token_gb, prefill_chunk=chunk)) as engine:
            assert np.array_equal(engine.logits(tokens), expected)
            misses, chunks = engine.stats.misses, -(-120 // chunk)
            assert engine.stats.bytes_read == misses * 12288
            assert misses <= 48 * chunks
            assert engine.stats.hits + misses == sum(
                len(np.unique(layer)) for part in chosen_in(path, tokens, chunk) for layer in part
            )


def chosen_in(path: Path, tokens: np.ndarray, chunk: int) -> list[list[np.ndarray]]:
    """What each layer chooses in each chunk, seen at the seam."""
    parts: list[list[np.ndarray]] = []
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb, prefill_chunk=chunk)) as engine:
        for stream in engine.layers:
            count = stream._count

            def seen(ids: np.ndarray, needed: np.ndarray, count=count, number=stream.number) -> None:  # type: ignore[no-untyped-def]
                if number == 0:
                    parts.append([])
                parts[-1].append(ids)
                count(ids, needed)

            stream._count = seen  # type: ignore[method-assign]
        engine.logits(tokens)
    return parts


def test_generating_reads_nothing_for_logits_that_nobody_uses(path: Path) -> None:
    prompt = "what the last layer makes of a prompt is only wanted for its last token"
    with load(path) as resident, load(path, Knobs(cache_gb=footprint(path).one_token_gb)) as engine:
        assert "".join(engine.generate(prompt, 12)) == "".join(resident.generate(prompt, 12))
        engine.stats.reset()
        assert next(engine.generate(prompt, 1)) is not None
        used = engine.uses
        before = used[-1].sum()
        next(engine.generate(prompt, 1))
        assert used[-1].sum() - before == 4  # top-k, of one token


def test_blocks_split_reads(path: Path, quarter: float) -> None:
    whole, split = measured(path, cache_gb=quarter), measured(path, cache_gb=quarter, read_block_kib=4)
    assert whole.reads == whole.misses and split.reads == 3 * whole.misses  # an expert is 12 KiB in one piece
    assert split.bytes_read == whole.bytes_read


def test_direct_reads_whole_pages(path: Path, quarter: float) -> None:
    buffered, direct = measured(path, cache_gb=quarter), measured(path, cache_gb=quarter, io_mode="direct")
    assert direct.misses == buffered.misses and direct.bytes_read > buffered.bytes_read


def test_threads_are_started(path: Path, quarter: float) -> None:
    with load(path, Knobs(cache_gb=quarter, read_threads=3)) as engine:
        engine.logits([1, 2, 3])
        assert engine.state is not None and len(engine.state.reader._threads) == 3


def test_a_slow_disk_is_waited_for(path: Path) -> None:
    """1 MB/s at 12 kB an expert and several misses a token: the waits must add up to bytes over bandwidth."""
    smallest = footprint(path).one_token_gb
    slow = measured(path, cache_gb=smallest, ssd_gbps=0.01)
    assert slow.io_ms >= 0.8 * slow.bytes_read / 0.01e9 * 1e3
    assert slow.mode == "streamed float32 cpu buffered held-to-0.01-GB/s"


def test_the_cache_never_grows_beyond_its_size(path: Path, quarter: float) -> None:
    with load(path, Knobs(cache_gb=quarter)) as engine:
        pools = [pool for layer in engine.layers for pool in layer.cache.pools]
        held = sum(value.nbytes for pool in pools for _, value in tree_flatten(pool.inner.parameters()))
        assert 0.9 * quarter * 1e9 < held <= quarter * 1e9


def test_a_cache_below_one_token_is_refused(path: Path) -> None:
    with pytest.raises(
        KnobError, match=r"cache_gb=0.0001 is below one token's experts \(0\.0002949 GB for .* at 16 bits\); raise"
    ):
        load(path, Knobs(cache_gb=0.0001))


def test_more_bits_than_the_checkpoint_has_are_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(KnobError, match=r"expert_bits=8 is above the checkpoint's 4 bits"):
        load(checkpoint("qwen3_moe", 4), Knobs(expert_bits=8))


def test_an_expert_that_cannot_be_read_gives_no_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb)) as engine:
        expected = engine.logits([1, 2, 3])

        def broken(*_: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.preadv", broken)
        with pytest.raises(ReadError, match=r"model\.layers\.\d\.mlp expert \d+ could not be read"):
            engine.logits(list(range(100)))
        monkeypatch.undo()
        for stream in engine.layers:  # reads that were queued behind the one that failed end in the same way
            for load_, _ in (coming for bank in stream.cache.pools for coming in bank._coming.values()):
                load_.join()
        assert np.array_equal(engine.logits([1, 2, 3]), expected)


def test_generate_yields_text_and_is_greedy_by_default(path: Path, quarter: float) -> None:
    with load(path) as resident, load(path, Knobs(cache_gb=quarter)) as engine:
        text = "".join(engine.generate("The mill", max_tokens=12))
        assert text and text == "".join(resident.generate("The mill", max_tokens=12))
        warm = ["".join(engine.generate("The mill", max_tokens=12, temperature=2.0, seed=s)) for s in (1, 1, 2)]
        assert warm[0] == warm[1] != warm[2]


@pytest.mark.parametrize("ids", [[], [-1], [256]])
def test_logits_refuse_what_is_no_token(path: Path, ids: list[int]) -> None:
    with load(path) as engine, pytest.raises(HeadraceError, match=r"logits: .*; encode"):
        engine.logits(ids)


def test_a_text_without_tokens_to_decode_is_refused(path: Path) -> None:
    with load(path) as engine, pytest.raises(JudgeError, match="text x has too few tokens"):
        engine.measure(Judge((Text("x", "prose", "abc", "d"),)))


def test_the_routing_profile_is_taken_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import Checkpoint
    from engine.plan.banks import plan_banks
    from engine.routing.profile import routing_profile

    source = Checkpoint.open(path)
    uses = routing_profile(source).uses
    assert uses.shape == (3, 16) and (uses.sum(axis=1) == uses.sum() / 3).all()
    monkeypatch.setattr("engine.system.user_cache.subprocess.run", lambda *_, **__: pytest.fail("taken again"))
    profile = routing_profile(source)
    banks = plan_banks(source, Knobs(cold_bits=4, hot_share=0.25), profile=profile)
    hot = np.zeros(uses.shape, bool)
    for bank in banks:
        hot[bank.layer, bank.members] = not bank.requantize
    assert hot.sum() == 12 and uses[hot].min() >= uses[~hot].max()


@pytest.mark.parametrize("cache_gb", [None, 0.001])
def test_what_does_not_fit_into_memory_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, cache_gb: float | None
) -> None:
    f = footprint(path)
    monkeypatch.setattr("engine.engine.memory_bytes", lambda: round((f.resident_gb + 0.0008) * 1e9))
    with pytest.raises(KnobError, match=r"takes .* GB, more than the .* GB of memory here; set cache_gb below 0.0008"):
        load(path, Knobs(cache_gb=cache_gb))
    with load(path, Knobs(cache_gb=0.0006)):
        pass


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_prompt_in_chunks_is_the_same_streamed(checkpoint: Callable[..., Path], family: str) -> None:
    """And the same as in one piece, but for Mamba's scan, which sums in pieces of its own."""
    path = checkpoint(family, 4)
    tokens = np.random.default_rng(3).integers(0, 255, 40)
    with load(path, Knobs(prefill_chunk=16)) as resident:
        expected = resident.logits(tokens)
    with load(path) as whole:
        difference = np.max(np.abs(whole.logits(tokens) - expected))
        assert difference == 0 or (family == "nemotron_h" and difference < 1e-4)
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb, prefill_chunk=16)) as engine:
        assert np.array_equal(engine.logits(tokens), expected)


def test_auto_keeps_the_faster_window() -> None:
    """A clock that says what a token takes with each size; the faster one changes half way."""
    now, ms = 0.0, {1: 3.0, 8: 2.0}
    auto = AutoWindow(8, clock=lambda: now)
    sizes = []
    for token in range(256):
        if token == 128:
            ms[8] = 5.0
        sizes.append(auto.size(True))
        now += ms[sizes[-1]]
    assert sizes[10:60] == [8] * 50 and sizes[200:250] == [1] * 50
    assert {1, 8} == set(sizes[64:74])


def test_auto_does_not_count_what_was_not_decoding() -> None:
    now = 0.0
    auto = AutoWindow(8, clock=lambda: now)
    for token in range(40):
        now += {1: 3.0, 8: 2.0}[auto.size(True)]
        if token % 3 == 0:
            auto.size(False)
            now += 1000.0
    assert auto.size(True) == 8
