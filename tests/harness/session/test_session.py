"""Whole nights on the fake engine, without child processes: rounds, sentinels, confirmation, what is not measured twice."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from engine import Knobs
from harness.analysis.pareto import front
from harness.report import rules_of


def test_rounds_learn_and_the_journal_says_what(night: Callable[..., pd.DataFrame], place: Path) -> None:
    df = night("rounds=2", "budget.trials=64", "search_space.cache_gb.high=0.02", "sampler.name=random")
    folder = place / "results" / "demo"
    assert df["round"].value_counts().to_dict() == {1: 33, 2: 32}  # the reference is none of them
    first, second = (yaml.safe_load((folder / "rounds" / n / "space.yaml").read_text()) for n in ("01", "02"))
    assert second != first
    wider = df[(df["round"] == 2) & (df["cache_gb"] > 0.02)]
    assert second["cache_gb"]["high"] > 0.02 and len(wider)  # the fake engine is faster the more is cached
    journal = (folder / "journal.md").read_text()
    for part in ("## Round 1", "## Round 2", "widen cache_gb", "rounds/02/space.yaml", "python -m harness.search"):
        assert part in journal, part
    again = night("rounds=2", "budget.trials=64", "search_space.cache_gb.high=0.02", "sampler.name=random")
    pd.testing.assert_frame_equal(df, again)
    assert (folder / "journal.md").read_text() == journal


def test_quality_is_measured_once_for_each_lossy_setting(night: Callable[..., pd.DataFrame]) -> None:
    df = night("budget.trials=16")
    scored = df[df["quality_from_trial"].isna()]
    assert scored["expert_bits"].fillna(0).is_unique or len(scored) == scored["expert_bits"].nunique(dropna=False) + 1
    reused = df[df["quality_from_trial"].notna()]
    assert len(reused) > 4
    source = df.set_index("trial")["perplexity"]
    assert np.allclose(reused["perplexity"], source.loc[reused["quality_from_trial"].astype(int)])
    assert (reused["saved_s"] == 0.4).all()


def test_a_drift_makes_runs_suspect_until_they_are_measured_again(night: Callable[..., pd.DataFrame]) -> None:
    def slow(figures: dict[str, Any], n: int) -> dict[str, Any]:
        return figures | {"decode_tok_s": figures["decode_tok_s"] * (0.5 if 9 <= n < 16 else 1.0)}

    df = night("budget.trials=20", "sentinel.every=4", alter=slow)
    sentinels = df[df["origin"] == "sentinel"].sort_values("started_at")
    assert sentinels["drift_since"].notna().any() and sentinels["drift_since"].isna().any()
    assert len(df[df["origin"] == "again"]) >= 3
    speeds = df[(df["run"] == 0) & (df["status"] == "ok")].set_index("trial")["decode_tok_s"]
    again = df[df["origin"] == "again"].set_index("trial")["decode_tok_s"]
    assert (again / speeds.loc[again.index] > 1.5).any()


def test_confirmation_measures_the_front_again_within_its_budget(night: Callable[..., pd.DataFrame], place: Path) -> None:
    rng = np.random.default_rng(3)

    def noisy(figures: dict[str, Any], n: int) -> dict[str, Any]:
        return figures | {"decode_tok_s": figures["decode_tok_s"] * float(np.exp(0.1 * rng.standard_normal()))}

    df = night("budget.trials=20", "confirm.share=0.5", "confirm.runs=3", alter=noisy)
    confirmed = df[df["origin"] == "confirm"]
    assert 4 <= len(confirmed) <= 10
    assert front(df)["confirmed"].any()
    folder = place / "results" / "demo"
    assert rules_of(folder) == {"runs": 3, "within": 0.05, "error": 0.03}  # the report goes by the study's own rules
    assert (confirmed.groupby("trial")["run"].min() >= 1).all()


def test_constraints_keep_points_off_the_front_and_are_in_the_rows(night: Callable[..., pd.DataFrame]) -> None:
    df = night("budget.trials=14", "constraints=['peak_memory_gb <= 0.05','perplexity <= 1.01 * reference']")
    ran = df[df["status"] == "ok"]
    broken = (ran["peak_memory_gb"] > 0.05) | (ran["perplexity"] > 1.01 * ran["perplexity"].iloc[0])
    assert broken.any() and not broken.all()
    assert (ran["feasible"] == ~broken).all()
    assert ran["violated"].notna().equals(broken)
    best = front(df)
    assert len(best) and (best["peak_memory_gb"] <= 0.05).all()


def test_other_objectives(night: Callable[..., pd.DataFrame], place: Path) -> None:
    df = night("budget.trials=10", "objectives=[prefill_tok_s,bytes_per_token]", plots=True)
    assert df["objectives"].unique().tolist() == ["prefill_tok_s,bytes_per_token"]
    assert len(front(df))
    assert (place / "results" / "demo" / "front.png").exists()


def test_a_wrong_answer_is_no_result(night: Callable[..., pd.DataFrame]) -> None:
    def wrong(figures: dict[str, Any], n: int) -> dict[str, Any]:
        return figures | {"timed_nll": 2.0 + 0.5 * (n == 7)}

    df = night("budget.trials=10", "search_space.expert_bits=4", alter=wrong)
    bad = df[df["status"] == "wrong"]
    assert len(bad) == 1
    assert "lossless knobs alone" in bad["status_reason"].iloc[0]
    assert bad["decode_tok_s"].isna().all()


def test_a_proposer_outside_takes_part(night: Callable[..., pd.DataFrame], place: Path) -> None:
    (place / "propose.py").write_text(
        "import json, sys\n"
        "asked = json.load(sys.stdin)\n"
        "n = len(asked['rows'])\n"
        "print(json.dumps({'settings': [{'cache_gb': 0.01 + n / 1000, 'evict_half_life': 3.0}, {'evict_half_life': 999}],"
        " 'changes': [{'kind': 'fix', 'knob': 'read_threads', 'value': 4}], 'note': 'from outside'}))\n"
    )
    df = night(
        "budget.trials=16", "rounds=2", "proposer.every=5", f"proposer.command='{sys.executable} {place / 'propose.py'}'"
    )
    ours = df[df["origin"] == "proposer"]
    assert len(ours) >= 1
    assert (ours["note"] == "from outside").all() and ours["proposer"].str.contains("propose.py").all()
    log = (place / "results" / "demo" / "logs" / "search.log").read_text()
    assert "evict_half_life=999 is outside its search space" in log
    assert (df[df["round"] == 2]["read_threads"] == 4).mean() > 0.5


def test_hours_end_a_night_and_the_same_command_goes_on(night: Callable[..., pd.DataFrame], place: Path) -> None:
    night("budget.trials=6", "budget.hours=0", rows=False)
    assert not (place / "results" / "demo" / "trials.parquet").exists()
    assert len(night("budget.trials=6")) == 7


def test_every_row_names_what_it_was_measured_with(night: Callable[..., pd.DataFrame]) -> None:
    df = night("budget.trials=6", "protocol.repeats=2")
    names = ("row_id", "machine", "model", "eval_fingerprint", "commit", "optuna", "space", "round", "seed",
             "warm_up_tokens", "headrace_version")  # fmt: skip
    for name in names:
        assert df[name].notna().all(), name
    assert df["row_id"].is_unique
    assert (df[df["origin"] == "repeat"]["run"] == 1).all() and (df["origin"] == "repeat").sum() >= 4
    assert set(dataclasses.asdict(Knobs())) <= set(df.columns)
