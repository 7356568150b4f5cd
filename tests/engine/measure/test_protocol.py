"""The measuring protocol: what is timed is the same whatever is scored, and the page cache is as it was asked to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import (
    HeadraceError,
    Judge,
    JudgeError,
    KnobError,
    Knobs,
    Measurement,
    Protocol,
    footprint,
    load,
    prepare_page_cache,
)
from engine.__main__ import main
from engine.measure.judge import Text
from engine.measure.timed_pass import token_nll
from engine.system.page_cache import cached_share, weight_files

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until night. "
JUDGE = Judge(
    (Text("a", "prose", TEXT, TEXT[:31]), Text("b", "prose", TEXT[::-1], TEXT[30:51]), Text("c", "x", "abc", "defgh"))
)
QUALITY = ("perplexity", "perplexity_se", "nll", "scored_tokens")


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def third(path: Path) -> float:
    f = footprint(path)
    return f.one_token_gb + 0.2 * (f.all_experts_gb - f.one_token_gb)


@pytest.fixture(scope="module")
def whole(path: Path, third: float) -> Measurement:
    """Without a protocol."""
    return measured(path, cache_gb=third)


def measured(path: Path, protocol: Protocol | None = None, keep_going: Any = None, **knobs: Any) -> Measurement:
    with load(path, Knobs(**knobs)) as engine:
        return engine.measure(JUDGE, protocol, keep_going)


@pytest.mark.parametrize("timed", [30, 41])  # where the first text ends (of 31 letters 30 are decoded), within the second
def test_the_timed_part_is_the_same_with_and_without_a_score(
    path: Path, third: float, whole: Measurement, timed: int
) -> None:
    scored = measured(path, Protocol(timed_tokens=timed), cache_gb=third)
    alone = measured(path, Protocol(timed_tokens=timed, score=False), cache_gb=third)
    for m in (scored, alone):
        assert m.decode_tokens == len(m.token_ms) == timed
        assert m.decode_tok_s == pytest.approx(1e3 * timed / sum(m.token_ms))
        assert not m.ended_early
    for name in ("timed_nll", "hits", "misses", "reads", "bytes_read"):
        assert getattr(scored, name) == getattr(alone, name), name
    assert [getattr(alone, name) for name in QUALITY] == [None] * 4
    assert [getattr(scored, name) for name in QUALITY] == [getattr(whole, name) for name in QUALITY]
    assert whole.decode_tokens == 30 + 20 + 4 and whole.timed_nll == whole.nll != scored.timed_nll


def test_a_judge_is_scored_as_it_is_passed_through(path: Path) -> None:
    """Without a protocol: the mean over all passes, and its exp."""
    with load(path) as engine:
        passes = [token_nll(*step) for text in engine.teacher_forced(JUDGE) for part in text for step in part]
        m = engine.measure(JUDGE)
    assert m.nll == np.concatenate(passes).mean() and m.perplexity == np.exp(m.nll)
    assert m.ttft_ms > 0 and m.scored_tokens == sum(len(t.prompt + t.continuation) - 1 for t in JUDGE.texts)


def test_lossless_knobs_leave_what_is_timed_alone(path: Path, third: float) -> None:
    protocol = Protocol(timed_tokens=24, score=False)
    expected = measured(path, protocol).timed_nll
    for knobs in ({"prefetch": "stale_gate"}, {"io_mode": "direct", "evict_half_life": 0.1}, {"sync_window": 3}):
        assert measured(path, protocol, cache_gb=third, **knobs).timed_nll == expected, knobs
    assert measured(path, protocol, cache_gb=third, expert_bits=4).timed_nll != expected


def test_keep_going_ends_a_measurement(path: Path, third: float) -> None:
    seen: list[int] = []

    def keep_going(token_ms: list[float]) -> bool:
        seen.append(len(token_ms))
        return len(token_ms) < 9

    m = measured(path, Protocol(timed_tokens=20), keep_going, cache_gb=third)
    assert m.ended_early and m.decode_tokens == 9 and seen == list(range(1, 10))
    assert m.perplexity is None and m.timed_nll is not None
    assert m.decode_tok_s == pytest.approx(9e3 / sum(m.token_ms))


def test_as_many_tokens_warm_up_as_are_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as engine:
        decode, decoded = engine.forward.decode, []
        monkeypatch.setattr(engine.forward, "decode", lambda *a: decoded.append(a[0]) or decode(*a))
        for tokens in (0, 8, 130):  # the judge's three texts have 57 tokens to decode
            decoded.clear()
            engine.teacher_forced(JUDGE, Protocol(warm_up_tokens=tokens))
            assert len(decoded) == tokens


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warm_up_tokens": -1}, "warm_up_tokens=-1 is not an integer of at least 0"),
        ({"timed_tokens": 0}, "timed_tokens=0 is not an integer of at least 1"),
        ({"timed_tokens": True}, "timed_tokens=True is not"),
        ({"page_cache": "hot"}, "page_cache='hot' is unknown; choose one of: as_is, cold, warm"),
        ({"score": 1}, "score=1 is neither"),
        ({"timed_token": 4}, "did you mean timed_tokens?"),
    ],
)
def test_wrong_protocols(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadraceError) as e:
        Protocol.from_mapping(values)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert Protocol.from_mapping(Protocol(timed_tokens=3).as_dict()) == Protocol(timed_tokens=3)


def test_more_tokens_than_there_are_cannot_be_timed(path: Path) -> None:
    with pytest.raises(JudgeError, match="timed_tokens=55 is above the 54 tokens that the judge's continuations hold"):
        measured(path, Protocol(timed_tokens=55))


def test_the_page_cache_is_dropped_and_filled(path: Path) -> None:
    files = weight_files(path)
    assert {file.suffix for file in files} == {".safetensors"}
    assert prepare_page_cache(path, "warm") == "read through"
    assert cached_share(files) == 1
    knobs = Knobs(cache_gb=footprint(path).one_token_gb)
    assert prepare_page_cache(path, "cold") == "posix_fadvise"
    assert cached_share(files) == 0
    with load(path, knobs) as engine:
        m = engine.measure(JUDGE, Protocol(timed_tokens=5))
    assert m.page_cached_before == 0 < m.page_cached_after
    assert prepare_page_cache(path, "as_is") == "as_is"


def test_what_cannot_be_had_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KnobError, match="page_cache=warm has no effect with io_mode=direct"):
        prepare_page_cache(path, "warm", "direct")
    monkeypatch.setattr("engine.system.page_cache.drop_cache", lambda files: "posix_fadvise")  # as where files lie in memory
    prepare_page_cache(path, "warm")
    with pytest.raises(HeadraceError, match=r"page_cache=cold: .* \(100% of .* stay cached\)"):
        prepare_page_cache(path, "cold")
    monkeypatch.setattr("engine.system.page_cache.drop_cache", lambda files: "not possible")
    monkeypatch.setattr("engine.system.page_cache.cached_share", lambda files: None)
    with pytest.raises(HeadraceError, match="this system has no call for it"):
        prepare_page_cache(path, "cold")


def test_figures_of_another_engine_are_checked() -> None:
    least = {"decode_tok_s": 3, "peak_memory_gb": 1.5, "perplexity": None}
    assert Measurement.from_mapping({**least, "token_ms": [1, 2.5]}).token_ms == [1, 2.5]
    for wrong, message in (
        ({"decode_tok_s": float("nan")}, "decode_tok_s=nan has the wrong type"),
        ({"hits": 1.5}, "hits=1.5"),
        ({"decode_tok_s": None}, "decode_tok_s=None"),
        ({"hit_rate": True}, "hit_rate=True"),
        ({"ppl": 3.0}, "ppl is not a figure"),
    ):
        with pytest.raises(HeadraceError, match=message):
            Measurement.from_mapping({**least, **wrong})
    with pytest.raises(HeadraceError, match="the figures lack perplexity"):
        Measurement.from_mapping({"decode_tok_s": 3.0, "peak_memory_gb": 1.0})


def test_the_command_line_takes_a_protocol(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    command = ["measure", "--model", str(path), "--judge", str(tmp_path / "mine.txt"), "--page-cache"]
    assert main([*command, "cold", "--timed-tokens", "6", "--warm-up-tokens", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["decode_tokens"], result["page_cache_by"]) == (6, "posix_fadvise")
    assert result["protocol"] == {"warm_up_tokens": 2, "timed_tokens": 6, "page_cache": "cold", "score": True}
    for wrong in (["lukewarm"], ["as_is", "--timed-tokens", "0"], ["warm", "--io-mode", "direct", "--cache-gb", "0.0005"]):
        assert main([*command, *wrong]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
