"""Probe: blocks whose weights or routers cannot be probed are refused where a knob needs the probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import deepseek_v3
from tiny import CONFIGS

from engine import KnobError, Knobs, footprint, load
from engine.checkpoint.built.model import build, built_model
from engine.model.probe import probe, widened

Make = Callable[..., Path]
IDS = [int(i) for i in np.random.default_rng(5).integers(0, 250, 48)]
CHUNK, DECODED = 8, 24


def small(path: Path, times: float = 1.5, **knobs: Any) -> Knobs:
    """Knobs with a cache a little larger than one token's experts."""
    return Knobs.from_mapping({"cache_gb": footprint(path).one_token_gb * times, "prefill_chunk": CHUNK, **knobs})


def by_compiled_sum(block: Any, x: mx.array) -> mx.array:
    ids, weights = block.gate(x)
    return mx.compile(lambda y, w: (y * w[..., None]).sum(axis=-2))(block.switch_mlp(x, ids), weights)


def by_maximum(block: Any, x: mx.array) -> mx.array:
    ids, weights = block.gate(x)
    return (block.switch_mlp(x, ids) * weights[..., None]).max(axis=-2)


@pytest.mark.parametrize("call", [by_compiled_sum, by_maximum])
@pytest.mark.parametrize("knob", ["cold_drop", "cache_prior"])
def test_a_block_with_its_own_weighting_is_refused(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, call: Callable[..., mx.array], knob: str
) -> None:
    path = checkpoint("deepseek_v3")
    monkeypatch.setattr(deepseek_v3.DeepseekV3MoE, "__call__", call)
    with load(path, small(path)) as engine:
        assert np.isfinite(engine.logits(IDS[:4])).all()
    with pytest.raises(KnobError) as e:
        load(path, small(path, **{knob: 0.5}))
    assert str(e.value) == (
        f"{knob}=0.5 is not possible for deepseek_v3: DeepseekV3MoE does not only sum its experts' outputs times the "
        "gate weights; leave it at 0"
    )


def test_a_router_that_cannot_be_widened_has_no_prior(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint("deepseek_v3")
    monkeypatch.setattr("engine.model.probe._is", lambda value, number: False)
    with load(path, small(path, cold_drop=0.5)) as engine:
        assert engine.layers[0].gates is not None
    with pytest.raises(KnobError, match=r"cache_prior=0.5 is not possible for deepseek_v3: the router of DeepseekV3MoE"):
        load(path, small(path, cache_prior=0.5))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_router_chooses_one_more_whatever_it_calls_their_number(family: str) -> None:
    config = CONFIGS[family]
    built, model = built_model(Path("here"), config), build(config)
    modules = dict(model.named_modules())
    for switch in built.switches:
        owner, _, name = switch.path.rpartition(".")
        try:
            probe(modules[owner], name, weigh=False)(mx.zeros((1, 1, built.hidden)))
        except Exception:  # the router is outside of the block that has the switch
            continue
        copied = widened(modules[owner], name, switch.top_k, switch.top_k + 1, built.hidden)
        assert copied is not None
        assert probe(copied, name, weigh=False)(mx.zeros((1, 1, built.hidden))).ids.shape[-1] == switch.top_k + 1
        assert probe(modules[owner], name, weigh=False)(mx.zeros((1, 1, built.hidden))).ids.shape[-1] == switch.top_k


def test_no_number_of_the_block_is_taken_for_another() -> None:
    """deepseek_v3 with as many groups as experts per token."""
    config = {**CONFIGS["deepseek_v3"], "n_group": 4, "topk_group": 4}
    block = dict(build(config).named_modules())["model.layers.1.mlp"]
    copied = widened(block, "switch_mlp", 4, 6, 64)
    assert copied is not None and (copied.gate.top_k, copied.gate.n_group, block.gate.top_k) == (6, 4, 4)
