"""Activations: keys and values as mlx-lm's caches hold them, and passes that follow context and vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from engine.checkpoint.checkpoint import Checkpoint
from engine.model.open import open_model
from engine.plan.memory.activations import Graph, pass_memory, trace_pass
from engine.plan.memory.export import exported


def opened(folder: Path) -> Any:
    model = open_model(Checkpoint.open(folder))
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "nemotron_h", "lfm2_moe"])
def test_a_pass_predicts_the_caches_and_the_peak(checkpoint: Callable[..., Path], family: str) -> None:
    model, context, chunk = opened(checkpoint(family)), 600, 300
    predicted = trace_pass(model, context, chunk)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    caches: list[Any] = make_prompt_cache(model)
    for _ in range(context // chunk):
        logits = model(mx.zeros((1, chunk), mx.int32), cache=caches).astype(mx.float32)
        mx.eval(logits, [cache.state for cache in caches])
    peak = mx.get_peak_memory() - before
    held = mx.get_active_memory() - before - logits.nbytes  # a state may keep the longer array that it is a part of
    assert 0.75 * held <= predicted.kv <= 1.3 * held
    assert 0.5 < (predicted.kv + predicted.activations) / peak < 2


def test_a_sliding_window_stops_growing(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint("gpt_oss"))
    short, long, longer = (trace_pass(model, tokens, 64).kv for tokens in (256, 2048, 4096))
    full_layers = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, dimensions, float32
    assert longer - long == 2048 * full_layers and long - short == pytest.approx(1792 * full_layers, rel=0.1)


def test_a_recurrence_is_extrapolated(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(checkpoint("qwen3_next"))
    fast = trace_pass(model, 120, 120)
    monkeypatch.setattr("engine.plan.memory.activations.SHORT", (120, 120))
    assert fast.activations == pytest.approx(trace_pass(model, 120, 120).activations, rel=0.2)


@pytest.mark.parametrize(("family", "tokens"), [("qwen3_moe", [16, 32, 128, 200]), ("qwen3_next", [16, 32, 16, 32])])
def test_whether_a_graph_grows_is_found_once(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, family: str, tokens: list[int]
) -> None:
    model, traced = opened(checkpoint(family)), list[int]()

    def noted(run: Any, inputs: list[mx.array], **how: Any) -> Any:
        traced.append(inputs[0].size)
        return exported(run, inputs, **how)

    expected = trace_pass(model, 600, 200)
    monkeypatch.setattr("engine.plan.memory.activations.exported", noted)
    graph = Graph()
    trace_pass(model, 600, 128, graph)
    assert trace_pass(model, 600, 200, graph) == expected
    assert traced == tokens and graph.grows == (family == "qwen3_next")


def test_logits_count(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint("qwen3_moe"))
    small = trace_pass(model, 64, 64).activations
    model.lm_head.weight = mx.zeros((20_000, 64))
    assert trace_pass(model, 64, 64).activations - small > 0.9 * 64 * 19_744 * 4


def test_a_graph_that_cannot_be_exported_is_said(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = Checkpoint.open(checkpoint("qwen3_moe"))
    traced = pass_memory(source, context=100, chunk=60)

    def refused(*arguments: Any, **more: Any) -> Any:
        raise ValueError("[export_function] Unable to get state for primitive X")

    monkeypatch.setattr("engine.plan.memory.activations.exported", refused)
    monkeypatch.setattr("engine.plan.memory.activations._KNOWN", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bound = pass_memory(source, context=100, chunk=60)
    assert bound.kv == pytest.approx(traced.kv, rel=0.3) and bound.activations == 2 * 4 * 256 * 60
    assert "predicted from its logits alone ([export_function] Unable to get" in capsys.readouterr().err
