"""Bits plot: table and heat map show the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plans import a_plan, a_profile

from engine import Checkpoint, Knobs
from engine.plan.bits import compute_plan
from engine.plan.bits_plot import layer_rows, plot_plan

Make = Callable[..., Path]
BY = ("expert", "layer", "projection")


def test_the_table_counts_hot_experts(source: Checkpoint) -> None:
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
