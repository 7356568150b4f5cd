"""Tests of the published measurements that Headrace ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import HeadraceError
from engine.shapes.library import shape
from harness.forecast.world.measurements import read_measurements, world
from harness.forecast.world.published import Measured


def test_there_are_enough_of_many_machines_models_and_engines() -> None:
    found = world()
    assert len(found) >= 15
    assert len({one.machine.chip for one in found}) >= 8 and len({one.shape for one in found}) >= 10
    assert len({one.engine for one in found}) >= 8


@pytest.mark.parametrize("one", world(), ids=lambda one: one.name)
def test_figures_of_one_measurement_fit_each_other(one: Measured) -> None:
    model = shape(one.shape)
    if one.slots is not None:
        assert one.slots < model.experts
    if one.top_k is not None:
        assert one.top_k < model.top_k and not one.lossless
    if one.experts_gb is not None:  # bits a weight with scales: between the engine's bits and 1.5 more
        bits = one.experts_gb * 1e9 * 8 / (model.parameters - model.resident_parameters)
        assert one.bits * 0.85 <= bits <= one.bits + 1.5
    if one.memory_used_gb is not None and one.machine.memory_gb is not None:
        assert one.memory_used_gb <= one.machine.memory_gb + (one.machine.gpu_memory_gb or 0)
    if one.read_gb_a_token is not None and one.hit_rate is not None:
        most = (1 - one.hit_rate) * model.token_bytes(8) / 1e9
        assert one.read_gb_a_token <= most


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("a: 1", "is no list of measurements; write one entry for each"),
        ("- 1", "bad.yaml, entry 1 is no table with a table `machine`"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(HeadraceError, match=said):
        read_measurements(file)


def test_a_name_is_used_once(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    one = "- {name: a, engine: e, machine: {chip: c, compute: cpu}, shape: glm_5, bits: 4, tokens_per_s: 1,\n"
    file.write_text(2 * (one + "   source: 'https://example.org', kind: issue}\n"))
    with pytest.raises(HeadraceError, match=r"twice.yaml has 2 entries with the name a; give each a name of its own"):
        read_measurements(file)
