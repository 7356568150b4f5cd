"""Open: the knob top_k gives the model that config.json with that value gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import olmoe
from mlx_lm.models.switch_layers import SwitchLinear

from engine import Checkpoint, CheckpointError, Judge, Knobs, footprint, load
from engine.measure.judge import Text
from engine.model.open import lay_out_for_gpu, open_model

Make = Callable[..., Path]
IDS = [int(i) for i in np.random.default_rng(5).integers(0, 250, 48)]
TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT[:30], TEXT[:30]), Text("b", "prose", TEXT[::-1][:30], TEXT[30:50])))


def test_a_missing_kernel_is_not_called_a_damaged_model(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[metal_kernel] No Metal back-end.")

    monkeypatch.setattr(olmoe.Model, "__call__", call)
    with pytest.raises(CheckpointError, match="olmoe computes with Metal kernels of its own, which this backend"):
        load(checkpoint("olmoe"))


@pytest.mark.parametrize("family", ["deepseek_v3", "kimi_k25", "gpt_oss", "granitemoe", "olmoe"])
def test_top_k_equals_the_same_value_in_config(checkpoint: Make, tmp_path: Path, family: str) -> None:
    path = checkpoint(family)
    fewer = footprint(path).top_k - 1
    twin = Path(shutil.copytree(path, tmp_path / "twin"))
    config = json.loads((twin / "config.json").read_text())
    config.get("text_config", config)["num_experts_per_tok"] = fewer
    (twin / "config.json").write_text(json.dumps(config))
    with load(twin) as engine:
        expected = engine.logits(IDS)
    assert footprint(path, Knobs(top_k=fewer)).one_token_gb == footprint(twin).one_token_gb
    smallest = Knobs(cache_gb=footprint(twin).one_token_gb, top_k=fewer, prefetch="stale_gate", prefetch_width=1.5)
    for knobs in (Knobs(top_k=fewer), smallest, Knobs(cache_gb=smallest.cache_gb, top_k=fewer, sync_window=0)):
        with load(path, knobs) as engine:
            assert np.array_equal(engine.logits(IDS), expected)
            assert engine.checkpoint.top_k == fewer and engine.mode.startswith(("resident", "streamed"))
    with load(path, Knobs(cache_gb=footprint(path).all_experts_gb, top_k=fewer)) as engine:
        assert engine.measure(JUDGE).hits == sum(len(t.continuation) - 1 for t in JUDGE.texts) * len(engine.layers) * fewer


def test_a_store_looks_through_the_modules_once_not_for_each_tensor(store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, named_modules = [], nn.Module.named_modules
    monkeypatch.setattr(nn.Module, "named_modules", lambda self: looked.append(self) or named_modules(self))
    open_model(Checkpoint.open(store("qwen3_moe", 4)))
    assert 0 < len(looked) < 6  # not once for each of more than 100 tensors


@pytest.mark.parametrize("family", ["granitemoe", "qwen3_5_moe"])
def test_projections_that_are_parts_of_a_joint_tensor_become_contiguous(checkpoint: Make, family: str) -> None:
    """MLX's kernels for sorted rows compute wrong outputs with a view of a larger tensor."""
    model = open_model(Checkpoint.open(checkpoint(family, "original")))
    projections = [module for module in model.modules() if isinstance(module, SwitchLinear)]
    before = [memoryview(module.weight.view(mx.uint16)) for module in projections]
    assert sum(not view.c_contiguous for view in before) == 2 * len(projections) // 3
    lay_out_for_gpu(model)
    for module, view in zip(projections, before, strict=True):
        after = memoryview(module.weight.view(mx.uint16))
        assert after.c_contiguous and np.array_equal(np.asarray(after), np.asarray(view))
