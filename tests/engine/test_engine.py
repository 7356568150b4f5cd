"""Engine: its methods, and the effect of each knob compared with the default."""

from __future__ import annotations

import errno
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make

from engine import (
    CheckpointError,
    HeadraceError,
    Judge,
    JudgeError,
    KnobError,
    Knobs,
    Measurement,
    ReadError,
    footprint,
    load,
)
from engine.measure.judge import Text

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT[:40], TEXT[:30]), Text("b", "prose", TEXT[::-1][:40], TEXT[30:60])))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def quarter(path: Path) -> float:
    """The size of a cache for a little more than a third of the experts."""
    f = footprint(path)
    return f.one_token_gb + 0.2 * (f.all_experts_gb - f.one_token_gb)


@functools.cache
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


def test_the_figures_of_a_measurement_agree(path: Path, quarter: float) -> None:
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


def test_the_half_life_changes_evictions(path: Path, quarter: float) -> None:
    misses = {h: measured(path, cache_gb=quarter, evict_half_life=h).misses for h in (1e-3, 8, 1e9)}
    assert len(set(misses.values())) > 1


def test_blocks_split_reads(path: Path, quarter: float) -> None:
    whole, split = measured(path, cache_gb=quarter), measured(path, cache_gb=quarter, read_block_kib=4)
    assert whole.reads == whole.misses and split.reads == 3 * whole.misses  # an expert is 12 KiB in one piece
    assert split.bytes_read == whole.bytes_read


def test_direct_reads_whole_pages(path: Path, quarter: float) -> None:
    buffered, direct = measured(path, cache_gb=quarter), measured(path, cache_gb=quarter, io_mode="direct")
    assert direct.misses == buffered.misses and direct.bytes_read > buffered.bytes_read


def test_a_slow_disk_is_waited_for(path: Path) -> None:
    """At 10 MB/s the waits must add up to bytes over bandwidth."""
    smallest = footprint(path).one_token_gb
    slow = measured(path, cache_gb=smallest, ssd_gbps=0.01)
    assert slow.io_ms >= 0.8 * slow.bytes_read / 0.01e9 * 1e3
    assert slow.mode == "streamed float32 cpu buffered held-to-0.01-GB/s"


def test_a_cache_below_one_token_is_refused(path: Path) -> None:
    with pytest.raises(
        KnobError, match=r"cache_gb=0.0001 is below one token's experts \(0\.0002949 GB for .* at 16 bits\); raise"
    ):
        load(path, Knobs(cache_gb=0.0001))


def test_more_bits_than_the_checkpoint_has_are_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(KnobError, match=r"expert_bits=8 is above the checkpoint's 4 bits"):
        load(checkpoint("qwen3_moe", 4), Knobs(expert_bits=8))


def test_an_expert_that_cannot_be_read_gives_no_logits(path: Path) -> None:
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb)) as engine:
        expected = engine.logits([1, 2, 3])

        assert engine.state is not None
        engine.state.reader.native.inject(error=errno.EIO)
        with pytest.raises(ReadError, match=r"model\.layers\.\d\.mlp expert \d+ could not be read"):
            engine.logits(list(range(100)))
        for pool in (pool for layer in engine.layers for pool in layer.cache.pools):
            while not pool.settled:  # reads queued after the failed one also fail
                pool.take_in()
        engine.state.reader.native.heal()
        assert np.array_equal(engine.logits([1, 2, 3]), expected)


def test_generate_yields_text_and_is_greedy_by_default(path: Path, quarter: float) -> None:
    with load(path) as resident, load(path, Knobs(cache_gb=quarter)) as engine:
        text = "".join(engine.generate("The mill", max_tokens=12))
        assert text and text == "".join(resident.generate("The mill", max_tokens=12))
        warm = ["".join(engine.generate("The mill", max_tokens=12, temperature=2.0, seed=s)) for s in (1, 1, 2)]
        assert warm[0] == warm[1] != warm[2]


def test_a_tokenizers_own_code_is_never_run(tmp_path: Path) -> None:
    path, ran = make(tmp_path / "tiny", "kimi_k2"), tmp_path / "ran"
    described = json.loads((path / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(described | own))
    (path / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as OwnTokenizer\n"
    )
    with load(path) as engine, pytest.raises(CheckpointError, match=r"its tokenizer cannot be opened .*never run"):
        engine.encode("x")
    assert not ran.exists()


@pytest.mark.parametrize("ids", [[], [-1], [256]])
def test_logits_refuse_invalid_tokens(path: Path, ids: list[int]) -> None:
    with load(path) as engine, pytest.raises(HeadraceError, match=r"logits: .*; encode"):
        engine.logits(ids)


def test_a_text_without_tokens_to_decode_is_refused(path: Path) -> None:
    with load(path) as engine, pytest.raises(JudgeError, match="text x has too few tokens"):
        engine.measure(Judge((Text("x", "prose", "abc", "d"),)))


def test_the_routing_profile_is_measured_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import Checkpoint
    from engine.plan.banks import plan_banks
    from engine.routing.profile import routing_profile
    from engine.system.user_cache import compute_apart

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("engine.routing.profile.compute_apart", compute_apart)
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
def test_a_setting_above_memory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, cache_gb: float | None) -> None:
    f = footprint(path)
    monkeypatch.setattr("engine.plan.footprint.memory_bytes", lambda: round((f.resident_gb + 0.0008) * 1e9))
    with pytest.raises(KnobError, match=r"takes .* GB, more than the .* GB of memory here; set cache_gb below 0.0008"):
        load(path, Knobs(cache_gb=cache_gb))
    with load(path, Knobs(cache_gb=0.0006)):
        pass
