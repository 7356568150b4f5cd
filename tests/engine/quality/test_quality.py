"""Quality against mlx-lm's figures and whole logits; a reference on disk that is whole and its own, or made anew."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.perplexity import eval_ppl

from engine import Checkpoint, HeadraceError, Judge, JudgeError, Knobs, footprint, load
from engine.__main__ import JSON_PROMPTS, JUDGE, KIMI_MINI, main
from engine.cli import offline
from engine.measure.judge import Text
from engine.measure.measurement import perplexity
from engine.measure.timed_pass import token_nll
from engine.quality import reference as reference_module
from engine.quality.divergence import likeliest, log_bucket
from engine.quality.json_prompts import JsonPrompts, parses
from engine.quality.quality import Quality, quality
from engine.quality.reference import (
    Reference,
    reference_file,
    reference_for,
    reference_knobs,
    take_reference,
)

TEXTS = Judge.load(JUDGE).texts
SHORT = Judge(tuple(dataclasses.replace(t, prompt=t.prompt[:150]) for t in (TEXTS[0], TEXTS[7])))
FEW = JsonPrompts(24, JsonPrompts.load(JSON_PROMPTS).prompts[:1])
TINY_TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until night. "
TINY = Judge((Text("a", "prose", TINY_TEXT, TINY_TEXT[:40]), Text("b", "prose", TINY_TEXT[::-1], TINY_TEXT[30:60])))


@pytest.fixture(scope="module")
def reference() -> Reference:
    with load(KIMI_MINI) as resident:
        return take_reference(resident, SHORT)


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


def judged(path: Path, reference: Reference, judge: Judge = SHORT, **knobs: Any) -> Quality:
    with load(path, Knobs(**knobs)) as loaded:
        return quality(loaded, judge, reference)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def whole_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    log_p, log_q = log_softmax(p), log_softmax(q)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def test_perplexity_is_mlx_lms() -> None:
    """On the same tokens, laid out as it wants them: rows of one length."""
    with load(KIMI_MINI) as resident:
        ids = resident.encode(TEXTS[0].prompt + TEXTS[1].prompt)[:300]
        rows = np.array(ids).reshape(-1, 50)
        theirs = eval_ppl(resident.model, mx.array(rows), batch_size=4)
        nll = [token_nll(mx.array(resident.logits(row[:-1])), row[1:].tolist()) for row in rows]
    assert perplexity(np.concatenate(nll)) == pytest.approx(theirs, rel=1e-6)


def test_a_text_has_the_perplexity_that_mlx_lm_gives_it() -> None:
    """Over all that lies between: chunks, token-by-token decoding, the reference's file."""
    one = Judge(SHORT.texts[:1])
    with load(KIMI_MINI) as resident:
        ids = resident.encode(one.texts[0].prompt) + resident.encode(one.texts[0].continuation, start=False)
        theirs = eval_ppl(resident.model, mx.array([ids]))
        result = quality(resident, one, take_reference(resident, one))
        measured = resident.measure(one)
    assert result.scored_tokens == measured.scored_tokens == len(ids) - 1
    for ours in (result, measured):
        assert (ours.perplexity, ours.perplexity_se) == pytest.approx(theirs, rel=1e-6)
    assert result.reference_perplexity == result.perplexity and result.nll == measured.nll


def test_the_reference_is_at_no_distance_from_itself(reference: Reference) -> None:
    cached = 0.3 * footprint(KIMI_MINI).all_experts_gb
    for knobs in ({}, {"cache_gb": cached}):
        result = judged(KIMI_MINI, reference, **knobs)
        assert (result.kl, result.kl_se, result.kl_p99, result.top1_flips) == (0, 0, 0, 0)
        assert 0 <= result.kl_at_most < 0.02


def test_fewer_bits_are_farther_away(reference: Reference) -> None:
    by_bits = [judged(KIMI_MINI, reference, expert_bits=bits) for bits in (4, 2)]
    for name in ("kl", "kl_at_most", "kl_p99", "top1_flips", "perplexity"):
        values = [getattr(result, name) for result in by_bits]
        assert values == sorted(values) and values[0] < values[-1], name
    low = by_bits[-1]
    assert low.kl > 0.2 and low.top1_flips > 0.2 and low.perplexity > 1.1 * low.reference_perplexity
    assert 0 < low.kl_se < low.kl < low.kl_p99


def test_the_divergence_is_bounded(reference: Reference) -> None:
    """kimi_mini at 2 bits: the whole divergence from whole logits lies between, token by token, and the bounds are near."""
    with load(KIMI_MINI) as resident, load(KIMI_MINI, Knobs(expert_bits=2)) as low:
        ids = [resident.encode(t.prompt) + resident.encode(t.continuation, start=False) for t in SHORT.texts]
        p, q = (np.concatenate([e.logits(some)[:-1] for some in ids]) for e in (resident, low))
    whole = whole_divergence(p, q)
    bounds = np.array([reference.divergence(i, row) for i, row in enumerate(q.astype(np.float64))])
    assert len(whole) == len(reference.targets)
    assert (bounds[:, 0] <= whole + 1e-6).all() and (whole <= bounds[:, 1] + 1e-6).all()
    assert bounds[:, 0].mean() > 0.99 * whole.mean() and bounds[:, 1].mean() < 1.05 * whole.mean()
    assert (np.exp(reference.rest) <= 1e-3 * (1 + 1e-9)).all()


@pytest.mark.parametrize("most", [1, 7, 64, 300])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0, 20.0])
def test_the_bounds_hold_for_any_logits(most: int, spread: float) -> None:
    """Also where hardly anything is kept, and where the other model finds likely what this one does not."""
    rng = np.random.default_rng(round(10 * spread) + most)
    for p in spread * rng.standard_normal((20, 300)):
        ids = likeliest(p, 1e-3, most)
        lse, rest = log_bucket(p, ids)
        some = Reference(
            "", "", 300, *np.zeros((3, 1)), np.array([lse]), np.array([rest]), np.array([len(ids)]), ids, p[ids], np.zeros(0)
        )
        for q in (p + 0.01 * rng.standard_normal(300), spread * rng.standard_normal(300), -p, p):
            low, high = some.divergence(0, q)
            whole = float(whole_divergence(p, q))
            assert low - 1e-9 <= whole <= high + 1e-9
            assert most < 300 or high == pytest.approx(low, abs=1.1e-3 * (np.ptp(q) + np.ptp(p)))


def test_likeliest_leaves_the_tail_and_no_more() -> None:
    p = np.log(np.array([0.1, 0.4, 0.2, 0.29, 0.01]))
    for tail, kept in ((0.5, [1, 3]), (0.25, [1, 2, 3]), (0.05, [0, 1, 2, 3]), (0, [0, 1, 2, 3, 4])):
        assert likeliest(p, tail).tolist() == kept
    assert likeliest(p, 0, most=2).tolist() == [1, 3]
    assert log_bucket(p, np.arange(5)) == (pytest.approx(0, abs=1e-12), -np.inf)


def test_the_file_is_the_reference(reference: Reference, tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    file.write_bytes(reference.to_bytes())
    again = Reference.read(file, reference.identity)
    for field in dataclasses.fields(Reference):
        if field.name != "origin":
            assert np.array_equal(getattr(again, field.name), getattr(reference, field.name)), field.name
    assert file.stat().st_size < 0.4 * len(reference.targets) * reference.vocab * 4  # whole logits, float32


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "text", "gone"])
def test_a_damaged_file_is_not_used(reference: Reference, tmp_path: Path, damage: str) -> None:
    file, content = tmp_path / "r.npz", reference.to_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    whole = {"cut": content[:-1], "empty": b"", "flip": bytes(changed), "text": b"what is this?" * 9}
    if damage != "gone":
        file.write_bytes(whole[damage])
    with pytest.raises(HeadraceError, match="cannot be read" if damage == "gone" else "is damaged"):
        Reference.read(file, reference.identity)


def test_the_reference_is_computed_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again if the file is damaged or another's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = Checkpoint.open(tiny)
    requests = []

    def child(_: str, __: str, job: str, *, given: str) -> None:
        requests.append(given)
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        assert offline.main([job]) == 0

    monkeypatch.setattr(reference_module, "compute_apart", child)
    first = reference_for(source, TINY, FEW)
    with load(tiny) as resident:
        here = take_reference(resident, TINY, FEW)
    assert first.origin == "computed now" and np.array_equal(first.nll, here.nll) and np.array_equal(first.ids, here.ids)
    file = reference_file(source, TINY, FEW)
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    assert reference_for(source, TINY, FEW).origin == "on file" and len(requests) == 1
    foreign = dataclasses.replace(here, identity=json.dumps({**json.loads(here.identity), "model": "0" * 16}))
    for content, why in (
        (file.read_bytes()[:-9], "is damaged"),
        (foreign.to_bytes(), "belongs to another model, text or version"),
    ):
        file.write_bytes(content)
        assert reference_for(source, TINY, FEW).origin == f"computed again, because {file} {why}"
        assert reference_for(source, TINY, FEW).origin == "on file"


def test_every_model_text_and_prompt_has_a_reference_of_its_own(
    tiny: Path, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = Checkpoint.open(tiny), Checkpoint.open(checkpoint("kimi_k2", 5))
    files = [reference_file(source, TINY), reference_file(other, TINY), reference_file(source, SHORT)]
    files.append(reference_file(source, TINY, FEW))
    monkeypatch.setattr("engine.measure.judge.METRIC_VERSION", 2)
    files.append(reference_file(source, TINY))
    monkeypatch.setattr(reference_module, "FORMAT", 2)
    files.append(reference_file(source, TINY))
    assert len(set(files)) == len(files)


def test_a_reference_of_something_else_is_refused(reference: Reference, tiny: Path) -> None:
    with pytest.raises(HeadraceError, match="belongs to other texts or JSON prompts"):
        judged(KIMI_MINI, reference, TINY)
    with pytest.raises(HeadraceError, match="splits the texts into other tokens"):
        judged(tiny, reference)


def test_a_model_larger_than_memory_has_a_streamed_reference(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = footprint(tiny)
    assert reference_knobs(Checkpoint.open(tiny)) == Knobs()
    with load(tiny) as resident:
        expected = take_reference(resident, TINY)
    for room, cache_gb in ((0.5, need.all_experts_gb * 0.5), (0.01, need.one_token_gb)):
        memory = round((need.resident_gb + room * need.all_experts_gb) / reference_module.ROOM * 1e9)
        monkeypatch.setattr(reference_module, "memory_bytes", lambda memory=memory: memory)
        knobs = reference_knobs(Checkpoint.open(tiny))
        assert knobs.cache_gb == pytest.approx(cache_gb, rel=1e-3)
        with load(tiny, knobs) as streamed:
            found = take_reference(streamed, TINY)
        assert found.mode.startswith("streamed") and np.array_equal(found.logits, expected.logits)
        assert found.identity == expected.identity


def test_logits_that_are_not_finite_have_no_quality(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny) as resident:
        monkeypatch.setattr(resident.forward, "decode", lambda *_: mx.full((1, 256), float("nan")))
        with pytest.raises(HeadraceError, match="its logits are not finite with these knobs"):
            take_reference(resident, TINY)


@pytest.mark.parametrize(
    ("text", "valid"),
    [('{"a": [1, null]}', True), ('{"a": 1}, and so on', True), ('{"a": 1', False), ('{"a": NaN}', False),
     ('{"a": 1,}', False), ("{'a': 1}", False), ('{"a": "\n"}', False), ("[" * 100_000, False)],
)  # fmt: skip
def test_what_parses(text: str, valid: bool) -> None:
    assert parses(text) == valid


def test_completed_objects_are_counted() -> None:
    """kimi_mini completes the first prompt's, but not within a few tokens, and not where the examples are none."""
    examples, opened = FEW.prompts[0]
    prompts = JsonPrompts(24, (*FEW.prompts, ("", '{"the": {')))
    judge = Judge((Text("a", "prose", "The mill", " stood there"),))
    with load(KIMI_MINI) as resident:
        result = quality(resident, judge, take_reference(resident, judge, prompts), prompts)
        assert not JsonPrompts(5, FEW.prompts).valid(resident.generate).any()
        assert parses(opened + "".join(resident.generate(examples + opened, 24)))
    assert result.json_valid == result.reference_json_valid == 0.5 and result.json_prompts == 2
    assert result.prompts == prompts.fingerprint != FEW.fingerprint


def test_the_prompts_are_frozen_and_many() -> None:
    prompts = JsonPrompts.load(JSON_PROMPTS)
    assert prompts.fingerprint == "27e6673c992f9bbb" and len(prompts.prompts) >= 20
    for examples, _ in prompts.prompts:
        begins = [i for i, c in enumerate(examples) if c == "{" and examples[:i].rstrip(" ").endswith(("\n", "", "A:"))]
        assert any(parses(examples[i:]) for i in begins)


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


def test_prompts_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    for content, message in (
        ("max_tokens: 0\nprompts: [{examples: a, open: '{'}]", "need max_tokens of at least 1"),
        ("max_tokens: 4\nprompts: [{examples: a, open: 'x'}]", "entry 0: it needs examples, and open that begins with {"),
        ("max_tokens: 4\nprompts: [7]", "entry 0: it needs examples"),
        ("a: [", "it is not YAML"),
    ):
        file.write_text(content)
        with pytest.raises(JudgeError, match=message):
            JsonPrompts.load(file)
