"""Plans of bits: the budget is met, the exponents do what they say, and the model computes with just those bits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_model

from engine import Checkpoint, HeadraceError, Judge, KnobError, Knobs, footprint, load
from engine.__main__ import main
from engine.checkpoint.store.description import Description
from engine.measure.judge import Text
from engine.packing.pack import pack_store
from engine.plan.banks import plan_banks, plan_bits
from engine.plan.bits import BitsPlan, allocate, compute_plan, hot_share_for, importance, weights_of, widths
from engine.plan.bits_file import load_plan, save_plan
from engine.plan.bits_plot import layer_rows, plot_plan
from engine.routing.profile import Profile

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
TOKENS = [int(i) for i in np.random.default_rng(7).integers(0, 255, 40)]
BY = ("expert", "layer", "projection")


@pytest.fixture(scope="module")
def source(checkpoint: Make) -> Checkpoint:
    """deepseek_v3 in bf16: 3 layers of 16 experts, top-4, three projections of 2048 weights."""
    return Checkpoint.open(checkpoint("deepseek_v3", None, True))


def a_profile(source: Checkpoint, seed: int = 0) -> Profile:
    rng = np.random.default_rng(seed)
    shape = weights_of(source).shape[:2]
    return Profile(rng.permuted(np.arange(np.prod(shape)).reshape(shape), axis=1))


def a_plan(source: Checkpoint, by: str, share: float = 0.5, low: int = 2, high: int = 4, seed: int = 0) -> BitsPlan:
    """By chance, whole experts, layers or projections of a layer."""
    weights = weights_of(source)
    layers, experts, projections = weights.shape
    shape = {"expert": (layers, experts, 1), "layer": (layers, 1, 1), "projection": (layers, 1, projections)}[by]
    worth = np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape) / np.prod(shape)
    worth = np.broadcast_to(worth, weights.shape)
    return BitsPlan(np.where(worth < share, widths(source, high), widths(source, low)), worth, weights)


def as_store(source: Checkpoint) -> Checkpoint:
    """The checkpoint as if it were packed at 2 and 4 bits."""
    return dataclasses.replace(source, store=Description((2, 4), "made up", (), ()))


# --- allocation ---


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.floats(0, 1), st.integers(0, 9), st.booleans(),
)  # fmt: skip
def test_the_budget_is_met_to_within_an_expert(
    layers: int, experts: int, projections: int, share: float, seed: int, even: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = layers, experts, projections
    low = np.full(shape, 2, np.uint8)
    more = np.full(shape, 2) if even else rng.integers(0, 3, shape)  # some have no more than `low` as it is
    high = (low + more).astype(np.uint8)
    weights = np.full(shape, 64) if even else rng.integers(1, 100, shape) * 64
    weights[-1, experts // 2 + 1 :] = 0  # the last layer has fewer experts
    worth = rng.random(shape) * rng.integers(0, 2, shape)
    bits = allocate(low, high, weights, worth, share)
    assert bits.dtype == np.uint8 and np.array_equal(bits, allocate(low, high, weights, worth, share))

    raised = ((bits > low) & (weights > 0)).sum(axis=2, keepdims=True) > 0
    cost = ((high.astype(int) - low) * weights).sum(axis=2, keepdims=True)
    assert np.array_equal(np.where(weights > 0, bits, 0), np.where(weights > 0, np.where(raised, high, low), 0))
    left = round(share * cost.sum()) - cost[raised].sum()
    waiting = cost[~raised & (cost > 0)]
    assert left >= 0 and (not len(waiting) or left < waiting.min())
    density = np.where(cost > 0, np.where(high > low, worth, 0) * (weights > 0), 0).sum(axis=2, keepdims=True)
    density = density / np.maximum(cost, 1)
    if even and raised.any() and len(waiting) and len(np.unique(cost[cost > 0])) == 1:
        assert density[raised & (cost > 0)].min() >= density[~raised & (cost > 0)].max() * (1 - 1e-5)


HAND = np.array([[[4, 1, 1], [1, 1, 1]], [[1, 9, 1], [2, 0, 0]], [[0, 0, 0], [3, 3, 3]]], float)


@pytest.mark.parametrize(
    ("share", "hot"),
    [
        (0.5, [[[1, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]]),
        (0.3, [[[0, 0, 0]] * 2, [[1, 1, 1], [0, 0, 0]], [[0, 0, 0]] * 2]),  # 1.8 of 6 experts: one
        (0.0, np.zeros((3, 2, 3))),
        (1.0, np.ones((3, 2, 3))),
    ],
)
def test_who_is_hot_by_hand(share: float, hot: Any) -> None:
    low, high, weights = np.full((3, 2, 3), 2, np.uint8), np.full((3, 2, 3), 4, np.uint8), np.full((3, 2, 3), 10)
    assert np.array_equal(allocate(low, high, weights, HAND, share) == 4, np.array(hot, bool))


def test_ties_go_by_layer_and_expert_whatever_the_rounding() -> None:
    """Importances that are alike, but for float32's rounding."""
    low, high, weights = np.full((6, 11, 3), 2, np.uint8), np.full((6, 11, 3), 4, np.uint8), np.full((6, 11, 3), 64)
    worth = 0.1 * (1 + np.random.default_rng(0).uniform(-1e-8, 1e-8, (6, 11, 3)))
    bits = allocate(low, high, weights, worth, 0.5)
    assert (bits[:3] == 4).all() and (bits[3:] == 2).all()


# --- importance ---


def test_the_exponent_of_frequency(source: Checkpoint) -> None:
    profile, shape = a_profile(source), weights_of(source).shape
    mixed = {"cold_bits": 2, "expert_bits": 4, "freq_exponent": 0.0}

    def worth(**exponents: float) -> np.ndarray:
        return importance(source, Knobs.from_mapping({**mixed, **exponents}), profile)

    frequency = np.broadcast_to((profile.uses / profile.uses.sum(axis=1, keepdims=True))[..., None], shape)
    assert (worth() == 1).all()
    assert np.allclose(worth(freq_exponent=1), frequency) and np.allclose(worth(freq_exponent=0.5), frequency**0.5)
    assert np.array_equal(worth(freq_exponent=1), importance(source, Knobs(cold_bits=2), profile))


def test_the_most_used_are_hot_over_all_layers(source: Checkpoint) -> None:
    """And a layer that was never used, of a model whose layers differ in size, has none."""
    first, second, third = source.layers
    fewer = tuple(dataclasses.replace(t, file=t.file[:9], offset=t.offset[:9]) for t in second.tensors)
    odd = dataclasses.replace(source, layers=(first, dataclasses.replace(second, tensors=fewer), third))
    uses = np.zeros((3, 16), np.int64)
    uses[0], uses[1, :9] = np.arange(16) + 1, 50
    plan = compute_plan(odd, Knobs(cold_bits=2, hot_share=20 / 41), Profile(uses))
    hot = plan.bits == 16
    assert (hot[1, :9]).all() and (plan.bits[1, 9:] == 0).all() and not hot[2].any()
    assert np.array_equal(hot[0].all(axis=1), np.arange(16) >= 5) and hot.sum() == 3 * 20
    assert plan.average_bits == pytest.approx(2 + 14 * 20 / 41)
    banks = plan_banks(odd, Knobs(cold_bits=2, cache_gb=1), plan)
    assert [(b.layer, len(b.members), b.least, bool(b.requantize)) for b in banks] == [
        (0, 11, 4, False), (0, 5, 4, True), (1, 9, 4, False), (2, 16, 4, True)
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.6, 1.0])
def test_a_foreseen_cache_is_enough_whoever_is_hot(source: Checkpoint, share: float) -> None:
    knobs = Knobs(cold_bits=2, expert_bits=4, hot_share=share)
    foreseen = footprint(source, knobs)
    for seed in range(5):
        worth = np.random.default_rng(seed).integers(0, 99, (3, 16)) ** 2 * [[seed + 1], [1], [1]]
        banks = plan_banks(source, knobs, compute_plan(source, knobs, Profile(worth)))
        assert sum(b.least * b.slot_bytes for b in banks) <= foreseen.one_token_gb * 1e9 + 0.5
        assert sum(len(b.members) * b.slot_bytes for b in banks) == round(foreseen.all_experts_gb * 1e9)


def test_a_mixed_checkpoint_is_never_widened(checkpoint: Make) -> None:
    """Widths 3, 4 and 6 as stored, and bf16; cold ones get 4 where they have more."""
    source = Checkpoint.open(checkpoint("qwen3_moe", "mixed"))
    own = widths(source, None)
    assert set(np.unique(own)) == {3, 4, 6, 16}
    plan = compute_plan(source, Knobs(cold_bits=4, hot_share=0.5), a_profile(source))
    assert (plan.bits <= own).all() and set(np.unique(plan.bits[plan.bits != own])) == {4}
    low, high = ((w * plan.weights).sum() / plan.weights.sum() for w in (np.minimum(own, 4), own))
    assert plan.average_bits == pytest.approx((low + high) / 2, abs=0.05)
    assert hot_share_for(source, Knobs(cold_bits=4), (low + high) / 2) == pytest.approx(0.5)


# --- what is computed ---


def requantized_by_hand(path: Path, plan: BitsPlan, source: Checkpoint) -> np.ndarray:
    """Logits of mlx-lm's own model in float32, its experts' weights through mx.quantize and back one by one."""
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    modules = dict(model.named_modules())
    for number, layer in enumerate(source.layers):
        place = next(name for name in modules if name.startswith(layer.block) and name.endswith("switch_mlp"))
        for p, name in enumerate(layer.projections):
            weight, group = modules[place][name].weight, 64 if layer.input_dims(name) % 64 == 0 else 32
            experts = []
            for expert, bits in enumerate(plan.bits[number, :, p].tolist()):
                how = {"group_size": group, "bits": bits}
                experts.append(weight[expert] if bits == 16 else mx.dequantize(*mx.quantize(weight[expert], **how), **how))
            modules[place][name].weight = mx.stack(experts)
    return np.array(model(mx.array(TOKENS)[None])[0])


@pytest.mark.parametrize(
    ("family", "by", "low", "high"),
    [("qwen3_moe", "expert", 2, 4), ("qwen3_moe", "projection", 2, None), ("nemotron_h", "projection", 3, 8),
     ("nemotron_h", "expert", 2, None), ("deepseek_v3", "layer", 2, 4)],
)  # fmt: skip
def test_a_mixed_plan_computes_with_the_experts_requantized_by_hand(
    checkpoint: Make, tmp_path: Path, family: str, by: str, low: int, high: int | None
) -> None:
    path = checkpoint(family, None)
    source = Checkpoint.open(path)
    plan = a_plan(source, by, 0.5, low, high)
    save_plan(tmp_path / "p", plan, source, Knobs(), None)
    expected = requantized_by_hand(path, plan, source)
    with load(path, Knobs(bits_plan=str(tmp_path / "p"))) as engine:
        mixed = engine.logits(TOKENS)
    assert np.max(np.abs(mixed - expected)) < 2e-4 * np.max(np.abs(expected))
    for bits in (low, high):
        with load(path, Knobs(expert_bits=bits)) as uniform:
            assert np.max(np.abs(uniform.logits(TOKENS) - expected)) > 1e-2 * np.max(np.abs(expected))
    for share in (0, 0.5):
        f = footprint(path, Knobs(bits_plan=str(tmp_path / "p")))
        cache_gb = f.one_token_gb + share * (f.all_experts_gb - f.one_token_gb)
        with load(path, Knobs(bits_plan=str(tmp_path / "p"), cache_gb=cache_gb)) as streamed:
            assert np.array_equal(streamed.logits(TOKENS), mixed)


def test_a_saved_plan_is_the_knobs_it_was_made_from(source: Checkpoint, tmp_path: Path, capsys: Capture) -> None:
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
    """At either end it is the level by itself."""
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


# --- the file ---


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
def test_a_plan_that_is_not_this_models_or_not_whole_is_refused(
    source: Checkpoint, tmp_path: Path, edit: Any, message: str
) -> None:
    file = tmp_path / "p"
    save_plan(file, a_plan(source, "expert"), source, Knobs(), None)
    _edit(file, edit)
    with pytest.raises(KnobError) as e:
        load(source.path, Knobs(bits_plan=str(file)))
    assert message in str(e.value) and str(e.value).startswith(f"bits_plan={file}") and "\n" not in str(e.value)
    assert str(e.value).endswith("make one with python -m engine plan --out")


def test_damaged_bytes_are_refused_or_without_effect(source: Checkpoint, tmp_path: Path) -> None:
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
    with pytest.raises(KnobError, match="has experts of 4 kinds of width in layer 1; at most 2 can be"):
        load_plan(file, source)


# --- mistakes ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"freq_exponent": 0.5}, "freq_exponent=0.5 has no effect without cold_bits"),
        ({"cold_bits": 2, "freq_exponent": 2.5}, "freq_exponent=2.5 is outside 0 .. 2"),
        ({"cold_bits": 4, "expert_bits": 3}, "cold_bits=4 is above expert_bits=3"),
        ({"bits_plan": "p", "hot_share": 0.5}, "hot_share=0.5 has no effect with bits_plan=p"),
        ({"bits_plan": "p", "cold_bits": 2}, "cold_bits=2 has no effect with bits_plan=p"),
    ],
)
def test_knobs_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError) as e:
        Knobs.from_mapping(values)
    assert str(e.value).startswith(message) and "\n" not in str(e.value)


def test_a_width_that_the_store_does_not_have_is_refused(source: Checkpoint) -> None:
    with pytest.raises(KnobError, match=r"cold_bits=3 is not a level of the store .*; use one of 2, 4"):
        compute_plan(as_store(source), Knobs(cold_bits=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--average-bits", "1.5"], "average_bits=1.5 is below the lowest that expert_bits and cold_bits can give (2)"),
        (["--average-bits", "5"], "average_bits=5 is above the highest that expert_bits and cold_bits can give (4)"),
        (["--average-bits", "3", "--hot-share", "0.5"], "--hot-share has no effect: plan --average-bits says the budget"),
        (["--read-threads", "2"], "--read-threads has no effect: plan is about bits alone"),
        (["--trace", "nowhere"], "trace nowhere cannot be read"),
        (["--out", "no/folder/p"], "the plan no/folder/p cannot be written"),
        (["--plot", "no/folder/p.png"], "the plot no/folder/p.png cannot be written"),
        (["--plot", "p.docx"], "the plot p.docx cannot be written"),
    ],
)
def test_mistakes_on_the_command_line(source: Checkpoint, capsys: Capture, options: list[str], message: str) -> None:
    assert main(["plan", str(source.path), "--expert-bits", "4", "--cold-bits", "2", "--freq-exponent", "0", *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_average_bits_alone_says_what_it_lacks(source: Checkpoint, capsys: Capture) -> None:
    assert main(["plan", str(source.path), "--average-bits", "3"]) == 2
    assert "average_bits=3 has no effect without cold_bits" in capsys.readouterr().err


# --- routing ---


def test_a_profile_of_a_trace(source: Checkpoint, tmp_path: Path) -> None:
    with load(source.path) as engine, engine.trace(tmp_path / "t"):
        engine.logits(TOKENS)
    rows = pq.read_table(tmp_path / "t").to_pandas()
    profile = Profile.of_trace(tmp_path / "t", source)
    one = rows[(rows.layer == 1) & (rows.expert == int(rows[rows.layer == 1].expert.iloc[0]))]
    expert = int(one.expert.iloc[0])
    assert profile.uses[1, expert] == len(one) and profile.uses.sum() == len(rows)
    _edit(tmp_path / "t", lambda rows, said: (rows.assign(layer=rows.layer + 1), said))  # as the model numbers them
    assert Profile.of_trace(tmp_path / "t", source).fingerprint == profile.fingerprint


@pytest.mark.parametrize(
    "edit",
    [
        lambda rows, said: (rows[rows.layer > 0].assign(layer=rows.layer + 1), {}),
        lambda rows, said: (pd.concat([rows, rows.assign(layer=3)]), {}),
        lambda rows, said: (rows.assign(expert=rows.expert + 1), said),
        lambda rows, said: (rows.assign(expert=-1), said),
        lambda rows, said: (rows, {**said, b"num_experts": b"128"}),
        lambda rows, said: (rows.iloc[:0], said),
    ],
)
def test_a_trace_of_another_model_is_refused(source: Checkpoint, tmp_path: Path, edit: Any) -> None:
    with load(source.path) as engine, engine.trace(tmp_path / "t"):
        engine.logits(TOKENS)
    _edit(tmp_path / "t", edit)
    with pytest.raises(HeadraceError, match=r"but .* has 3 of 16; record it on this model"):
        Profile.of_trace(tmp_path / "t", source)


def test_a_damaged_profile_is_named(source: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from engine.routing.profile import profile_file, routing_profile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile_file(source).parent.mkdir()
    profile_file(source).write_bytes(b"PK\x03\x04 what is left of it")
    with pytest.raises(HeadraceError, match=r"routing profile .* is damaged .*; remove it"):
        routing_profile(source)


# --- for the eye ---


def test_the_table_says_who_is_hot(source: Checkpoint) -> None:
    plan, profile = a_plan(source, "expert"), a_profile(source)
    rows = layer_rows(plan, source, profile)
    hot = plan.bits[..., 0] == 4
    assert [r["hot experts"] for r in rows] == hot.sum(axis=1).tolist() and sum(r["hot experts"] for r in rows) == 24
    assert np.allclose([r["uses at low bits"] for r in rows], (profile.frequency * ~hot).sum(axis=1))
    by_projection = layer_rows(a_plan(source, "projection"), source, None)
    assert {v for r in by_projection for k, v in r.items() if k.endswith("_proj")} == {2.0, 4.0}
    assert all(r["uses at low bits"] is None for r in by_projection)
    uniform = layer_rows(compute_plan(source, Knobs(expert_bits=4)), source, profile)
    assert [(r["hot experts"], r["uses at low bits"]) for r in uniform] == [(16, 0.0)] * 3


@pytest.mark.parametrize("by", [*BY, "uniform"])
def test_the_heat_map_has_a_cell_for_every_unit(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    from matplotlib.axes import Axes

    drawn: list[np.ndarray] = []
    imshow = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda ax, values, **how: drawn.append(values) or imshow(ax, values, **how))
    plan = compute_plan(source, Knobs()) if by == "uniform" else a_plan(source, by)
    plot_plan(plan, source, tmp_path / "p.png")
    bits = plan.bits[:, :, 0] if by == "expert" else plan.bits[:, 0]
    assert len(drawn) == (1 if by == "uniform" else 2) and np.array_equal(drawn[0], bits)


def test_bench_bits_compares_at_equal_bytes(checkpoint: Make, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    path = str(checkpoint("deepseek_v3", None, True))
    command = ["bench", "bits", path, "--rounds", "2", "--average-bits", "3", "--judge", str(tmp_path / "mine.txt")]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored, low, uniform, high, *mixed = result["rows"]
    assert stored["kl"] == [0.0] and stored["average_bits"] == 16
    assert [row["arm"] for row in (low, uniform, high)] == ["uniform 2", "uniform 3", "uniform 4"]
    assert low["kl"] > uniform["kl"] > high["kl"]
    assert [row["arm"] for row in mixed] == ["random", "frequency"]
    assert {row["gb"] for row in mixed} == {uniform["gb"]}
    assert all(kl > 0 for row in (uniform, *mixed) for kl in row["kl"])
    assert len(mixed[0]["kl"]) == 2 and len(set(mixed[0]["kl"])) == 2
    assert main([*command, "--hot-share", "0.5"]) == 2
    assert "--hot-share has no effect: bench bits" in capsys.readouterr().err
