"""Tests of what a miss costs besides its bytes: the forced choices, the sparse checkpoint, and the figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engine import HeadraceError
from engine.checkpoint.checkpoint import Checkpoint
from engine.shapes.library import shape
from harness.forecast.machine.miss import _moving, _written, miss_time
from harness.forecast.machine.short import shortened
from harness.forecast.target import target
from tests.harness.forecast.test_target import KIMI_MINI


def test_a_miss_of_a_small_model() -> None:
    model = target(str(KIMI_MINI))
    found = miss_time(model.shape, model.base_bits)
    assert 0 <= found.sync_ms < 1000 and 0 <= found.missed_ms < 1000 and found.missed_sd > 0


@pytest.mark.parametrize(("name", "bits"), [("gpt_oss_20b", None), ("qwen3_30b_a3b", 4), ("kimi_k2_5", None)])
def test_zeros_of_a_shape_take_no_space_and_open(name: str, bits: int | None, tmp_path: Path) -> None:
    whole = shape(name)
    first = min(switch.number for switch in whole.switches)
    nbytes = _written(shortened(whole, first + 2, 64), bits, tmp_path)
    file = tmp_path / "model.safetensors"
    assert file.stat().st_size > nbytes > 100 * 512 * file.stat().st_blocks
    assert [layer.experts for layer in Checkpoint.open(tmp_path).layers] == [16, 16]


def test_each_second_choice_has_one_new_expert() -> None:
    ids = _moving(experts=8, layers=3, top_k=4)
    assert ids.shape == (16, 3, 4) and ids.max() == 7
    for before, after in zip(np.roll(ids, 1, axis=0), ids, strict=True):
        new = {len(set(after[layer]) - set(before[layer])) for layer in range(3)}
        assert len(new) == 1
    news = [len(set(ids[n, 0]) - set(ids[n - 1, 0])) for n in range(16)]
    assert news == [1, 0] * 8


def test_a_shape_that_cannot_run_is_one_line() -> None:
    whole = target(str(KIMI_MINI)).shape
    broken = dataclasses.replace(whole, config={**whole.config, "num_attention_heads": "many"})
    with pytest.raises(HeadraceError) as e:
        miss_time(broken, None)
    assert "\n" not in str(e.value)
