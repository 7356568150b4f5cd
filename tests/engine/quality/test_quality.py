"""Quality: perplexity equals mlx-lm's, the reference has no divergence from itself, and fewer bits have more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.perplexity import eval_ppl

from engine import HeadraceError, Judge, Knobs, footprint, load
from engine.__main__ import main
from engine.measure.judge import Text
from engine.measure.measurement import perplexity
from engine.measure.timed_pass import token_nll
from engine.quality.quality import Quality, quality
from engine.quality.reference import (
    Reference,
    take_reference,
)
from engine.system.shipped import EVALUATION_TEXTS as JUDGE
from engine.system.shipped import KIMI_MINI

TEXTS = Judge.load(JUDGE).texts
TINY_TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
TINY = Judge((Text("a", "prose", TINY_TEXT, TINY_TEXT[:40]), Text("b", "prose", TINY_TEXT[::-1], TINY_TEXT[30:60])))


def judged(path: Path, reference: Reference, judge: Judge, **knobs: Any) -> Quality:
    with load(path, Knobs(**knobs)) as loaded:
        return quality(loaded, judge, reference)


def test_perplexity_equals_mlx_lms() -> None:
    """On the same tokens, in mlx-lm's layout: rows of equal length."""
    with load(KIMI_MINI) as resident:
        ids = resident.encode(TEXTS[0].prompt + TEXTS[1].prompt)[:300]
        rows = np.array(ids).reshape(-1, 50)
        theirs = eval_ppl(resident.model, mx.array(rows), batch_size=4)
        nll = [token_nll(mx.array(resident.logits(row[:-1])), row[1:].tolist()) for row in rows]
    assert perplexity(np.concatenate(nll)) == pytest.approx(theirs, rel=1e-6)


def test_a_text_has_mlx_lms_perplexity(short: Judge) -> None:
    """The whole path is covered: chunks, token-by-token decoding and the reference."""
    one = Judge(short.texts[:1])
    with load(KIMI_MINI) as resident:
        ids = resident.encode(one.texts[0].prompt) + resident.encode(one.texts[0].continuation, start=False)
        theirs = eval_ppl(resident.model, mx.array([ids]))
        result = quality(resident, one, take_reference(resident, one))
        measured = resident.measure(one)
    assert result.scored_tokens == measured.scored_tokens == len(ids) - 1
    for ours in (result, measured):
        assert (ours.perplexity, ours.perplexity_se) == pytest.approx(theirs, rel=1e-6)
    assert result.reference_perplexity == result.perplexity and result.nll == measured.nll


def test_the_reference_has_no_divergence_from_itself(short: Judge, reference: Reference) -> None:
    cached = 0.3 * footprint(KIMI_MINI).all_experts_gb
    for knobs in ({}, {"cache_gb": cached}):
        result = judged(KIMI_MINI, reference, short, **knobs)
        assert (result.kl, result.kl_se, result.kl_p99, result.top1_flips) == (0, 0, 0, 0)
        assert 0 <= result.kl_at_most < 0.02


def test_fewer_bits_diverge_more(short: Judge, reference: Reference) -> None:
    by_bits = [judged(KIMI_MINI, reference, short, expert_bits=bits) for bits in (4, 2)]
    for name in ("kl", "kl_at_most", "kl_p99", "top1_flips", "perplexity"):
        values = [getattr(result, name) for result in by_bits]
        assert values == sorted(values) and values[0] < values[-1], name
    low = by_bits[-1]
    assert low.kl > 0.2 and low.top1_flips > 0.2 and low.perplexity > 1.1 * low.reference_perplexity
    assert 0 < low.kl_se < low.kl < low.kl_p99


def test_a_foreign_reference_is_refused(short: Judge, reference: Reference, tiny: Path) -> None:
    with pytest.raises(HeadraceError, match="belongs to other texts or JSON prompts"):
        judged(KIMI_MINI, reference, TINY)
    with pytest.raises(HeadraceError, match="splits the texts into other tokens"):
        judged(tiny, reference, short)


def test_logits_that_are_not_finite_have_no_quality(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny) as resident:
        monkeypatch.setattr(resident.forward, "decode", lambda *_: mx.full((1, 256), float("nan")))
        with pytest.raises(HeadraceError, match="the logits of a scored token are not finite"):
            take_reference(resident, TINY)


def test_the_command_prints_a_table_and_a_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text(TINY_TEXT * 5)
    command = ["quality", str(tiny), "--text", str(tmp_path / "mine.txt"), "--expert-bits", "2", "--json-prompts", "none"]
    assert main(command) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["kl"] > 0 and result["json_valid"] is None and result["knobs"]["expert_bits"] == 2
    assert "top-1 flips" in captured.out and "computed now" in captured.out and captured.err.count("\n") == 1
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "on file" in captured.out and not captured.err
    assert json.loads(captured.out.splitlines()[-1]) == result


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "checkpoint nowhere is not a folder"),
        (["TINY", "--text", "none.txt"], "judge none.txt cannot be read"),
        (["TINY", "--text", "SHORT"], "has 9 characters"),
        (["TINY", "--expert-bits", "7"], "expert_bits=7 is not a width"),
        (["TINY", "--cache-gb", "1e-6"], "is below one token's experts"),
        (["TINY", "--reference", "nowhere"], "checkpoint nowhere is not a folder"),
        (["TINY", "--json-prompts", "none.yaml"], "JSON prompts none.yaml cannot be read"),
        (["TINY", "--json-prompts", "SHORT"], "need max_tokens of at least 1 and a list of prompts"),
    ],
)
def test_mistakes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    (tmp_path / "short.txt").write_text("too short")
    names = {"TINY": str(tiny), "SHORT": str(tmp_path / "short.txt")}
    assert main(["quality", *(names.get(a, a) for a in args)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
