"""Confirmation: near rivals come first, it ends on a certain front, and the front becomes truer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import trials

from harness.analysis.pareto import front, standings
from harness.bench.confirm import Noise, Simulation, plain_front
from harness.decisions.confirmation import next_sweep

AT = pd.Timestamp("2026-01-01", tz="UTC")


def runs(*rows: tuple[int, int, str, float], **columns: Any) -> pd.DataFrame:
    """Rows of (trial, run, origin, tok/s), a minute apart."""
    df = trials(*((speed, 1.0, 5.0) for *_, speed in rows)).assign(
        trial=[r[0] for r in rows], run=[r[1] for r in rows], origin=[r[2] for r in rows], machine="m",
        started_at=[AT + pd.Timedelta(minutes=i) for i in range(len(rows))],
    )  # fmt: skip
    return df.assign(**columns)


def sweep(df: pd.DataFrame, number: int = 0, spent: int = 0, budget: int = 40) -> list[int]:
    return next_sweep(df, spent=spent, budget=budget, sweep=number)


def test_near_rivals_are_measured_first_and_every_other_sweep_backwards() -> None:
    df = trials((100, 10, 8), (98, 9.9, 8), (10, 1, 8), (50, 9, 8.5))  # 2 and 1 are near; nothing is near 3
    order = sweep(df)
    assert set(order[:2]) == {1, 2}
    assert order[::-1] == sweep(df, 1)
    assert sweep(df, spent=40) == []
    assert len(sweep(df, spent=39)) == 1
    assert sweep(trials()) == []


def test_stable_when_all_are_confirmed() -> None:
    rows = [(t, r, "confirm" if r else "sampler", s) for t, s in ((1, 100.0), (2, 10.0)) for r in range(3)]
    df = runs(*rows)
    df.loc[df["trial"] == 2, "peak_memory_gb"] = 0.1
    assert front(df)["confirmed"].all()
    assert sweep(df) == []
    assert sweep(df[df["run"] < 2]) != []


@pytest.mark.parametrize("truth", ["cache", "sparse"])
def test_confirmation_makes_the_front_truer(truth: str) -> None:
    objectives = ["decode_tok_s", "peak_memory_gb", "perplexity"]
    before, after = [], []
    for seed in range(1):
        study = Simulation(truth, objectives, Noise(), 60, seed, "random")
        before.append(study.true_share(plain_front(study.rows, objectives)))
        assert 0 < study.confirm(30) <= 30
        after.append(study.true_share(list(front(study.rows).index)))
        assert set(front(study.rows).index) <= set(standings(study.rows).query("standing != 'dominated'").index)
    assert np.mean(after) >= max(0.9, np.mean(before))
