"""Estimates: runs combined by trial, noise between runs, suspect runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from synthetic import FIVE, trials

from harness.analysis.estimates import estimates, noise, suspects
from harness.analysis.pareto import front
from harness.numerics.student_t import t_quantile
from harness.show.tables import front_table

AT = pd.Timestamp("2026-01-01", tz="UTC")


def runs(*rows: tuple[int, int, str, float], **columns: Any) -> pd.DataFrame:
    """Rows of (trial, run, origin, tok/s), a minute apart."""
    df = trials(*((speed, 1.0, 5.0) for *_, speed in rows)).assign(
        trial=[r[0] for r in rows], run=[r[1] for r in rows], origin=[r[2] for r in rows], machine="m",
        started_at=[AT + pd.Timedelta(minutes=i) for i in range(len(rows))],
    )  # fmt: skip
    return df.assign(**columns)


def test_a_single_run_has_the_prior_noise() -> None:
    one = estimates(FIVE).loc[1]
    assert (one["decode_tok_s"], one["runs"], one["fresh_runs"]) == (100, 1, 0)
    assert one["decode_tok_s_high"] == pytest.approx(100 * np.exp(t_quantile(0.975, 3) * 0.1))
    assert one["perplexity_low"] == one["perplexity_high"] == 8


def test_a_runs_own_interval_counts_if_it_is_wider() -> None:
    df = FIVE.assign(decode_tok_s_low=20.0, decode_tok_s_high=500.0)
    assert estimates(df).loc[1, "decode_tok_s_high"] == pytest.approx(500)


def test_two_fresh_runs_replace_the_first() -> None:
    df = runs((1, 0, "sampler", 130), (1, 1, "confirm", 100), (2, 0, "sampler", 80), (1, 2, "confirm", 100))
    assert estimates(df[:2]).loc[1, "decode_tok_s"] == pytest.approx(np.sqrt(130 * 100))
    point = estimates(df).loc[1]
    assert (point["decode_tok_s"], point["runs"], point["fresh_runs"]) == (100, 3, 2)
    repeats = df.assign(origin=["sampler", "repeat", "sampler", "repeat"])  # made before any selection
    assert estimates(repeats).loc[1, "fresh_runs"] == 0
    assert estimates(repeats).loc[1, "decode_tok_s"] > 100


def test_noise_is_estimated_despite_an_outlier() -> None:
    rng = np.random.default_rng(0)
    rows = [(t, r, "confirm" if r else "sampler", 50 * np.exp(0.04 * rng.normal())) for t in range(1, 41) for r in range(4)]
    assert noise(runs(*rows)).loc["decode_tok_s", "sd"] == pytest.approx(0.04, rel=0.2)
    rows[3] = (1, 3, "confirm", 5.0)
    assert noise(runs(*rows)).loc["decode_tok_s", "sd"] == pytest.approx(0.04, rel=0.25)


def test_suspect_runs_are_left_out_and_their_trials_listed() -> None:
    df = runs((1, 0, "anchor", 10), (2, 0, "sampler", 20), (3, 0, "sampler", 99), (1, 1, "sentinel", 5),
              (4, 0, "sampler", 40), (2, 1, "again", 22))  # fmt: skip
    df["drift_since"] = pd.Series([pd.NaT] * 3 + [AT + pd.Timedelta(minutes=1)] + [pd.NaT] * 2, dtype="datetime64[us, UTC]")
    assert suspects(df) == [3]
    found = estimates(df)
    assert found["suspect"].tolist() == [False, False, True, False]
    assert (found.loc[1, "decode_tok_s"], found.loc[2, "decode_tok_s"]) == (10, 22)
    assert 3 not in front(df).index
    df = df.assign(suspect=[None] * 4 + ["hot", None], status=["ok"] * 4 + ["stopped", "ok"])
    assert suspects(df) == [3, 4]


def test_a_front_of_suspect_runs_is_marked() -> None:
    df = FIVE.assign(suspect=["hot", "busy", "hot", "hot", "hot"])
    assert front(df)["trial"].tolist() == [1, 3, 2, 5]
    assert front(df)["suspect"].all() and not front(df)["confirmed"].any()
    assert said(df).count("all runs of this front are suspect") == 1
    df.loc[1, "suspect"] = None
    assert front(df)["trial"].tolist() == [2]
    assert "all runs of this front are suspect" not in said(df)


def said(df: pd.DataFrame) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(front_table(df, 200))
    return captured.get()


def test_infeasible_points_are_no_members() -> None:
    assert 1 not in front(FIVE.assign(feasible=[False, True, True, True, None])).index


def test_memory_within_its_noise_is_equal() -> None:
    assert front(trials((100, 10.02, 8), (90, 10, 8)))["trial"].tolist() == [1]


def test_two_objectives_and_less_is_better() -> None:
    df = trials((1, 10, 8), (2, 5, 9), (3, 11, 9)).assign(objectives="peak_memory_gb,perplexity")
    assert front(df)["trial"].tolist() == [2, 1]
