"""Record: a trace holds the routers' choices and the model's factors on every path, and changes nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from tiny import CONFIGS

from engine import Checkpoint, HeadraceError, Judge, Knobs, ReadError, footprint, load
from engine.engine import Engine
from engine.measure.judge import Text
from engine.model.probe import Outputs
from engine.routing.read import read_trace
from engine.routing.traces.ahead import Ahead, ahead_for

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 250, 90)]
TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
SCHEMA = pa.schema(
    [
        ("token", pa.int32()), ("phase", pa.large_string()), ("layer", pa.int16()), ("rank", pa.int16()),
        ("expert", pa.int16()), ("gate_weight", pa.float32()), ("pass", pa.int32()), ("text", pa.int32()),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


def smallest(path: Path, **knobs: Any) -> Knobs:
    return Knobs(cache_gb=footprint(path).one_token_gb * 1.2, **knobs)


def run(engine: Engine, file: Path) -> pd.DataFrame:
    """A prefill that needs several batches of experts, then 16 decoded tokens."""
    with engine.trace(file):
        cache = make_prompt_cache(engine.model)
        list(engine.forward.prefill(IDS[:70], cache))
        for token in IDS[70:86]:
            engine.forward.decode(token, cache)
    return pd.read_parquet(file)


def test_the_trace_equals_the_plain_models_gates(path: Path, tmp_path: Path) -> None:
    with load(path) as engine:
        trace = run(engine, tmp_path / "t.parquet")
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    chosen: list[tuple[mx.array, mx.array]] = []

    class Recorder(nn.Module):
        def __init__(self, gate: nn.Module) -> None:
            super().__init__()
            self.gate = gate

        def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
            chosen.append(self.gate(x))
            return chosen[-1]

    moe = [layer.mlp for layer in model.layers if "gate" in layer.mlp]
    for mlp in moe:
        mlp.gate = Recorder(mlp.gate)
    mx.eval(model(mx.array([IDS[:86]])))
    assert len(chosen) == 3 and len(trace) == 86 * 3 * 4
    for layer, (ids, weights) in enumerate(chosen):
        order = np.argsort(-np.array(weights[0]), axis=-1)
        mine = trace[trace.layer == layer]
        assert np.array_equal(mine.token, np.repeat(np.arange(86), 4)) and np.array_equal(
            mine["rank"], np.tile(range(4), 86)
        )
        assert np.array_equal(mine.expert.to_numpy().reshape(86, 4), np.take_along_axis(np.array(ids[0]), order, -1))
        sorted_weights = np.take_along_axis(np.array(weights[0]), order, -1)
        assert np.allclose(mine.gate_weight.to_numpy().reshape(86, 4), sorted_weights, rtol=1e-4)
    assert trace.phase.tolist() == ["prefill"] * 70 * 12 + ["decode"] * 16 * 12


@pytest.mark.parametrize("knobs", [{}, {"sync_window": 2}, {"sync_window": 0}, {"io_mode": "direct"}])
def test_every_path_gives_the_same_trace(path: Path, tmp_path: Path, knobs: dict[str, Any]) -> None:
    """With windows, rejected passes see other choices; only the accepted pass counts."""
    with load(path) as engine:
        expected = run(engine, tmp_path / "resident.parquet")
    with load(path, smallest(path, **knobs)) as engine:
        trace = run(engine, tmp_path / "streamed.parquet")
        assert engine.stats.misses > 0
        assert not knobs.get("sync_window") or engine.stats.passes > engine.stats.windows
    pd.testing.assert_frame_equal(trace, expected)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_gate_weights_are_known_in_every_family(checkpoint: Callable[..., Path], tmp_path: Path, family: str) -> None:
    """They decrease with the rank and sum to 1 if the model normalizes them; tracing does not change logits."""
    path = checkpoint(family)
    with load(path, smallest(path)) as engine:
        expected = engine.logits(IDS[:20])
        with engine.trace(tmp_path / "t.parquet"):
            assert np.array_equal(engine.logits(IDS[:20]), expected)
        layers, top_k = len(engine.checkpoint.layers), engine.checkpoint.top_k
    trace = pd.read_parquet(tmp_path / "t.parquet")
    assert len(trace) == 20 * layers * top_k
    assert trace.groupby(["token", "layer"]).expert.nunique().eq(top_k).all()
    assert trace.gate_weight.notna().all() and trace.gate_weight.gt(0).all()
    assert (
        trace.sort_values(["token", "layer", "rank"]).groupby(["token", "layer"]).gate_weight.is_monotonic_decreasing.all()
    )
    if family in ("qwen3_moe", "gpt_oss", "mixtral", "granitemoe", "glm4_moe", "minimax", "qwen3_next"):
        assert np.allclose(trace.groupby(["token", "layer"]).gate_weight.sum(), 1, atol=1e-4)


def test_the_schema_matches_published_traces(path: Path, tmp_path: Path) -> None:
    with load(path, smallest(path)) as engine:
        run(engine, tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.equals(SCHEMA)
    metadata = {k.decode(): v.decode() for k, v in schema.metadata.items()}
    source = metadata.pop("source")
    assert source == "headrace, streamed float32 cpu buffered; layer 0 is model.layers.1.mlp"
    assert (metadata.pop("fingerprint"), metadata.pop("lossy")) == (Checkpoint.open(path).fingerprint, "{}")
    assert metadata == {"model": path.name, "num_experts": "16", "num_layers": "3", "top_k": "4"}
    assert list(tmp_path.iterdir()) == [tmp_path / "t.parquet"]


def test_a_measurement_is_traced_apart_from_its_warm_up(path: Path, tmp_path: Path) -> None:
    judge = Judge((Text("a", "prose", TEXT, TEXT[:60]), Text("b", "prose", TEXT[::-1], TEXT[30:90])))
    with load(path, smallest(path)) as engine:
        with engine.trace(tmp_path / "t.parquet"):
            traced = engine.measure(judge)
        plain = engine.measure(judge)
    trace = pd.read_parquet(tmp_path / "t.parquet")
    assert traced.nll == plain.nll
    assert (trace.phase == "decode").sum() == traced.decode_tokens * 3 * 4
    assert trace.token.max() + 1 == 2 * len(TEXT) + traced.decode_tokens
    assert (traced.hits + traced.misses) == (trace.phase == "decode").sum()
    warm = trace[trace.token < 0]
    assert {*warm.phase} == {"warm_up_prefill", "warm_up_decode"} and {*warm.token} == set(range(-16, 0))
    assert (trace.phase.str.startswith("warm_up") == (trace.token < 0)).all() and warm["pass"].max() == 8
    assert trace["pass"].is_monotonic_increasing and trace.groupby("pass").phase.nunique().eq(1).all()
    assert trace.groupby("text").token.min().tolist() == [-16, 0, len(TEXT) + 59]
    assert read_trace(tmp_path / "t.parquet").prefilled == 2 * len(TEXT)


@pytest.mark.parametrize("knobs", [{}, {"prefetch": "stale_gate"}, {"sync_window": 0}])
def test_predictions_are_those_of_prefetch(path: Path, tmp_path: Path, knobs: dict[str, Any]) -> None:
    """A trace holds what `Prefetch` predicts, recorded by a run with it, without it, or resident."""
    predicted: list[list[int]] = []
    with load(path, smallest(path, prefetch="stale_gate")) as engine:
        for layer in engine.layers:
            receive = layer.prefetch.receive
            layer.prefetch.receive = lambda found, to=receive: (
                predicted.extend(np.array(p.ids).ravel().tolist() for p in found),
                to(found),
            )
        run(engine, tmp_path / "own.parquet")
    with load(path, smallest(path, **knobs)) as engine, engine.trace(tmp_path / "t.parquet", ahead_for(2, [1, 0.5], 4)):
        cache = make_prompt_cache(engine.model)
        list(engine.forward.prefill(IDS[:70], cache))
        for token in IDS[70:86]:
            engine.forward.decode(token, cache)
    for file, names in (
        ("own", ["predicted_1_4"]),
        ("t", ["predicted_1_2", "predicted_1_4", "predicted_2_2", "predicted_2_4"]),
    ):
        trace = pd.read_parquet(tmp_path / f"{file}.parquet")
        assert [n for n in trace.columns if n.startswith("predicted")] == names
        known = trace[trace.predicted_1_4.notna()]
        assert (known["rank"] == 0).all() and {*known.layer} == {0, 1} and {*known.token} == set(range(70, 86))
        assert [ids.tolist() for ids in known.sort_values(["token", "layer"]).predicted_1_4] == predicted
    assert {*trace[trace.predicted_2_2.notna()].layer} == {0} and trace.predicted_2_2.dropna().map(len).eq(2).all()


def test_a_router_that_cannot_run_ahead_is_named(path: Path, tmp_path: Path) -> None:
    with load(path) as engine:
        with pytest.raises(
            HeadraceError, match="cannot choose 17 of 16 experts ahead of time; record the trace without pred"
        ):
            engine.trace(tmp_path / "t.parquet", Ahead((1,), (17,))).__enter__()
        assert list(tmp_path.iterdir()) == [] and engine.passes.trace is None


@pytest.mark.parametrize("cached", [None, 1.2, 9.0])
def test_skipped_layers_are_not_in_the_trace(path: Path, tmp_path: Path, cached: float | None) -> None:
    """`generate` computes the last layer's experts only for the prompt's last token."""
    file = tmp_path / "t.parquet"
    knobs = Knobs() if cached is None else Knobs(cache_gb=footprint(path).one_token_gb * cached)
    with load(path, knobs) as engine, engine.trace(file):
        text = "".join(engine.generate(TEXT, max_tokens=8))
    trace, prompt = pd.read_parquet(file), len(TEXT)
    assert text and trace.token.max() + 1 == prompt + 7  # the last token is not computed with
    assert (trace.phase == "prefill").eq(trace.token < prompt).all()
    tokens = trace.groupby("layer").token.unique()
    assert [len(t) for t in tokens] == [prompt + 7, prompt + 7, 8] and tokens[2].min() == prompt - 1
    read = read_trace(file)
    assert read.prefilled == prompt and read.experts.shape == (prompt + 7, 3, 4)
    with load(path) as engine, engine.trace(file):
        engine.logits(engine.encode(TEXT))
    whole = pd.read_parquet(file)
    both = trace[trace.phase == "prefill"].merge(whole, on=["token", "layer", "rank"])
    assert (both.expert_x == both.expert_y).all() and len(both) == (prompt * 2 + 1) * 4


def test_the_model_is_left_as_it_was(path: Path, tmp_path: Path) -> None:
    for knobs in (Knobs(), smallest(path)):
        with load(path, knobs) as engine:
            before = {name: id(module) for name, module in engine.model.named_modules()}
            run(engine, tmp_path / "t.parquet")
            assert {name: id(module) for name, module in engine.model.named_modules()} == before


def test_a_block_with_its_own_weighting_has_no_gate_weights(path: Path, tmp_path: Path) -> None:
    """Some of mlx-lm's blocks pass the outputs to a compiled function, which does not accept the wrapper."""
    add_up = mx.compile(lambda y, scores: (y * scores[..., None]).sum(axis=-2))
    with load(path) as engine:
        expected = engine.logits(IDS[:20])
        moe = next(m for m in engine.model.modules() if type(m).__name__ == "DeepseekV3MoE")

        def call(self: Any, x: mx.array) -> mx.array:
            ids, scores = self.gate(x)
            return add_up(self.switch_mlp(x, ids), scores) + self.shared_experts(x)

        moe.__class__ = type("Compiled", (type(moe),), {"__call__": call})
        layer = engine.checkpoint.layers.index(
            engine.checkpoint.find(next(n for n, m in engine.model.named_modules() if m is moe))
        )
        with engine.trace(tmp_path / "t.parquet"):
            assert np.allclose(engine.logits(IDS[:20]), expected, atol=1e-3)
    trace = pd.read_parquet(tmp_path / "t.parquet")
    assert set(trace[trace.gate_weight.isna()].layer) == {layer}
    assert trace.groupby("layer").expert.count().eq(20 * 4).all()


def test_outputs_behave_like_an_array() -> None:
    noted: list[mx.array] = []
    y = mx.ones((1, 2, 4))

    def weighed(weights: mx.array) -> mx.array:
        noted.append(weights)
        return y * weights

    out = Outputs(y, weighed)
    assert out.shape == y.shape and out.dtype == y.dtype and out.sum().item() == 8
    weights = mx.full((1, 2, 1), 3.0)
    assert (out * weights).sum().item() == 24 and noted == [weights]


def test_mistakes_are_reported_before_computing(path: Path, tmp_path: Path) -> None:
    with load(path) as engine:
        for file, message in ((tmp_path, "it is a folder"), (tmp_path / "no" / "t.parquet", "No such file")):
            with pytest.raises(
                HeadraceError, match=rf"the trace {file} cannot be written \({message}.*; choose another file"
            ):
                engine.trace(file).__enter__()
        with engine.trace(tmp_path / "a"):
            with pytest.raises(HeadraceError, match=r"the trace .*/a is still active; end it before you start .*/b"):
                engine.trace(tmp_path / "b").__enter__()
            engine.logits(IDS[:2])
        assert len(pd.read_parquet(tmp_path / "a")) == 2 * 3 * 4


def test_after_an_error_there_is_no_file_and_no_tap(path: Path, tmp_path: Path) -> None:
    with load(path, smallest(path)) as engine:
        expected = engine.logits(IDS[:5])
        assert engine.state is not None
        engine.state.reader.native.inject(error=errno.EIO)
        with pytest.raises(ReadError), engine.trace(tmp_path / "t.parquet"):
            engine.logits(IDS)
        engine.state.reader.native.heal()
        assert list(tmp_path.iterdir()) == []
        assert np.array_equal(engine.logits(IDS[:5]), expected)
        run(engine, tmp_path / "t.parquet")
