"""Reference: stored on disk, computed again when damaged, and bounding the exact divergence of real logits."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from divergences import whole_divergence

from engine import Checkpoint, HeadraceError, Judge, Knobs, footprint, load
from engine.cli import offline
from engine.measure.judge import Text
from engine.plan.footprint import ROOM
from engine.quality import reference as reference_module
from engine.quality.json_prompts import JsonPrompts
from engine.quality.reference import (
    Reference,
    reference_file,
    reference_for,
    reference_knobs,
    take_reference,
)
from engine.system.shipped import JSON_PROMPTS, KIMI_MINI

FEW = JsonPrompts(24, JsonPrompts.load(JSON_PROMPTS).prompts[:1])
TINY_TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
TINY = Judge((Text("a", "prose", TINY_TEXT, TINY_TEXT[:40]), Text("b", "prose", TINY_TEXT[::-1], TINY_TEXT[30:60])))


def test_the_divergence_is_bounded(short: Judge, reference: Reference) -> None:
    """kimi_mini at 2 bits: the exact divergence of full logits lies between the bounds for every token."""
    with load(KIMI_MINI) as resident, load(KIMI_MINI, Knobs(expert_bits=2)) as low:
        ids = [resident.encode(t.prompt) + resident.encode(t.continuation, start=False) for t in short.texts]
        p, q = (np.concatenate([e.logits(some)[:-1] for some in ids]) for e in (resident, low))
    whole = whole_divergence(p, q)
    bounds = np.array([reference.divergence(i, row) for i, row in enumerate(q.astype(np.float64))])
    assert len(whole) == len(reference.targets)
    assert (bounds[:, 0] <= whole + 1e-6).all() and (whole <= bounds[:, 1] + 1e-6).all()
    assert bounds[:, 0].mean() > 0.99 * whole.mean() and bounds[:, 1].mean() < 1.05 * whole.mean()
    assert (np.exp(reference.rest) <= 1e-3 * (1 + 1e-9)).all()


def test_the_file_holds_the_reference(reference: Reference, tmp_path: Path) -> None:
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
    """It is computed again if the file is damaged or foreign."""
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


def test_models_texts_and_prompts_have_separate_references(
    tiny: Path, short: Judge, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = Checkpoint.open(tiny), Checkpoint.open(checkpoint("kimi_k2", 5))
    files = [reference_file(source, TINY), reference_file(other, TINY), reference_file(source, short)]
    files.append(reference_file(source, TINY, FEW))
    monkeypatch.setattr("engine.measure.judge.METRIC_VERSION", 2)
    files.append(reference_file(source, TINY))
    monkeypatch.setattr(reference_module, "FORMAT", 2)
    files.append(reference_file(source, TINY))
    assert len(set(files)) == len(files)


def test_a_model_larger_than_memory_has_a_streamed_reference(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = footprint(tiny)
    assert reference_knobs(Checkpoint.open(tiny)) == Knobs()
    with load(tiny) as resident:
        expected = take_reference(resident, TINY)
    for room, cache_gb in ((0.5, need.all_experts_gb * 0.5), (0.01, need.one_token_gb)):
        memory = round((need.resident_gb + room * need.all_experts_gb) / ROOM * 1e9)
        monkeypatch.setattr(reference_module, "memory_bytes", lambda memory=memory: memory)
        knobs = reference_knobs(Checkpoint.open(tiny))
        assert knobs.cache_gb == pytest.approx(cache_gb, rel=1e-3)
        with load(tiny, knobs) as streamed:
            found = take_reference(streamed, TINY)
        assert found.mode.startswith("streamed") and np.array_equal(found.logits, expected.logits)
        assert found.identity == expected.identity
