"""Bits file: a saved plan is read back unchanged, and damaged or foreign files are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plans import a_plan

from engine import Checkpoint, Judge, KnobError, Knobs, footprint, load
from engine.__main__ import main
from engine.checkpoint.store.description import Description
from engine.measure.judge import Text
from engine.packing.pack import pack_store
from engine.plan.banks import plan_bits
from engine.plan.bits_file import load_plan, save_plan

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
TOKENS = [int(i) for i in np.random.default_rng(7).integers(0, 255, 40)]


def as_store(source: Checkpoint) -> Checkpoint:
    """The checkpoint as if it were packed at 2 and 4 bits."""
    return dataclasses.replace(source, store=Description((2, 4), "made up", (), ()))


def test_a_saved_plan_equals_its_knobs(source: Checkpoint, tmp_path: Path, capsys: Capture) -> None:
    knobs = {"expert_bits": 8, "cold_bits": 2, "hot_share": 0.3, "freq_exponent": 0.5}
    options = [o for name, value in knobs.items() for o in (f"--{name.replace('_', '-')}", str(value))]
    file = tmp_path / "plan.parquet"
    assert main(["plan", str(source.path), *options, "--out", str(file), "--plot", str(tmp_path / "plan.png")]) == 0
    out = capsys.readouterr().out
    said = json.loads(out.splitlines()[-1])
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert pq.read_table(file).num_rows == 3 * 16 * 3
    judge = Judge((Text("a", "prose", "The mill stood where the valley narrowed, ", "and the water was its own."),))
    results = []
    for one in (Knobs.from_mapping(knobs), Knobs(bits_plan=str(file))):
        with load(source.path, one) as engine:
            results.append((engine.logits(TOKENS), engine.measure(judge)))
    assert np.array_equal(results[0][0], results[1][0]) and results[0][1].nll == results[1][1].nll
    for _, measured in results:
        assert measured.average_bits == said["average_bits"] == pytest.approx(2 + 6 * 14 / 48)  # 14.4 of 48 experts
        assert measured.plan_fingerprint == said["plan_fingerprint"] and len(said["plan_fingerprint"]) == 16
    assert said["all_experts_gb"] == pytest.approx(footprint(source, Knobs(bits_plan=str(file))).all_experts_gb)
    with load(source.path) as engine:
        reference = engine.measure(judge)
    assert (reference.average_bits, reference.plan_fingerprint) == (16, None)


def test_a_plan_of_a_stores_levels(checkpoint: Make, tmp_path: Path) -> None:
    """At a hot share of 0 or 1 the plan is one level."""
    path = tmp_path / "store"
    pack_store(checkpoint("qwen3_moe", 4), path, (2, 4))
    store = Checkpoint.open(path)
    mixed = {"cold_bits": 2, "freq_exponent": 0}
    plan = plan_bits(store, Knobs.from_mapping({**mixed, "hot_share": 0.5}))
    assert plan.average_bits == pytest.approx(3, abs=0.1) and set(np.unique(plan.bits)) == {2, 4}
    found = {}
    for share in (0.0, 0.5, 1.0):
        knobs = {**mixed, "hot_share": share}
        with load(path, Knobs.from_mapping(knobs)) as engine:
            found[share] = engine.logits(TOKENS)
        cache_gb = footprint(path, Knobs.from_mapping(knobs)).one_token_gb
        with load(path, Knobs.from_mapping({**knobs, "cache_gb": cache_gb})) as engine:
            assert np.array_equal(engine.logits(TOKENS), found[share])
    for share, bits in ((0.0, 2), (1.0, 4)):
        with load(path, Knobs(expert_bits=bits)) as engine:
            assert np.array_equal(engine.logits(TOKENS), found[share])
    assert np.max(np.abs(found[0.5] - found[1.0])) > 1e-3 < np.max(np.abs(found[0.5] - found[0.0]))


def test_a_plan_comes_back(source: Checkpoint, tmp_path: Path) -> None:
    plan = a_plan(source, "expert")
    save_plan(tmp_path / "p", plan, source, Knobs(cold_bits=2, expert_bits=4), "0" * 16)
    back = load_plan(tmp_path / "p", source)
    assert np.array_equal(back.bits, plan.bits) and np.array_equal(back.importance, plan.importance)
    assert back.fingerprint == plan.fingerprint != a_plan(source, "expert", seed=1).fingerprint
    metadata = pq.read_schema(tmp_path / "p").metadata
    assert json.loads(metadata[b"knobs"])["cold_bits"] == 2 and metadata[b"routing"] == b"0" * 16


def _edit(path: Path, edit: Callable[[Any, dict[bytes, bytes]], tuple[Any, dict[bytes, bytes]]]) -> None:
    rows, metadata = edit(pq.read_table(path).to_pandas(), dict(pq.read_schema(path).metadata))
    table = pa.Table.from_pandas(rows, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows, said: (rows.iloc[:-1], said), "its rows differ from those that were saved (1 are missing)"),
        (lambda rows, said: (rows.assign(bits=2), said), "is damaged"),
        (lambda rows, said: (rows.assign(layer=7), said), "is damaged: it has rows that do not exist in the model"),
        (lambda rows, said: (rows.assign(projection="up"), said), "is damaged: it has rows that do not exist in the model"),
        (lambda rows, said: (rows.assign(bits="four"), said), "is damaged"),
        (lambda rows, said: (rows.drop(columns="bits"), said), "is not a saved plan"),
        (lambda rows, said: (rows, {**said, b"format": b"headrace bits 0"}), "its format is headrace bits 0, not"),
        (lambda rows, said: (rows, {}), "is not a saved plan (its format is missing"),
        (lambda rows, said: (rows, {**said, b"model_fingerprint": b"abc"}), "is for another model, "),
    ],
)
def test_a_foreign_or_incomplete_plan_is_refused(source: Checkpoint, tmp_path: Path, edit: Any, message: str) -> None:
    file = tmp_path / "p"
    save_plan(file, a_plan(source, "expert"), source, Knobs(), None)
    _edit(file, edit)
    with pytest.raises(KnobError) as e:
        load(source.path, Knobs(bits_plan=str(file)))
    assert message in str(e.value) and str(e.value).startswith(f"bits_plan={file}") and "\n" not in str(e.value)
    assert str(e.value).endswith("make one with python -m engine plan --out")


def test_damaged_bytes_are_refused_or_harmless(source: Checkpoint, tmp_path: Path) -> None:
    file, plan = tmp_path / "p", a_plan(source, "expert")
    save_plan(file, plan, source, Knobs(), None)
    whole, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    for cut in (0, 7, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(KnobError, match="is not a saved plan"):
            load_plan(file, source)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            assert np.array_equal(load_plan(file, source).bits, plan.bits)
        except KnobError as e:
            refused += "\n" not in str(e)
    assert refused > 10


def test_widths_that_the_model_does_not_have_are_refused(source: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "p"
    for bits, message in ((7, "has 7 bits in layer 1, which"), (3, "has 3 bits in layer 1, which")):
        plan = a_plan(source, "layer", 1.0)
        plan.bits[1, 3] = bits
        save_plan(file, plan, source, Knobs(), None)
        with pytest.raises(KnobError, match=message):
            load_plan(file, as_store(source) if bits == 3 else source)
    plan = a_plan(source, "layer")
    plan.bits[1, :3, 0] = 5, 6, 8
    save_plan(file, plan, source, Knobs(), None)
    with pytest.raises(KnobError, match="has 4 widths in layer 1, more than the 2 that are possible"):
        load_plan(file, source)
