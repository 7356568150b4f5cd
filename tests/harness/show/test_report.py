"""The report: savings by reason, contribution by origin, undecided trials, and a study without a front."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import row, trials

from harness.analysis.pareto import standings
from harness.results.metrics import OBJECTIVES
from harness.show.report import contribution, health, report, saved, undecided, violations


def test_savings_are_named_by_their_reason() -> None:
    df = trials(*[(1, 1, 1)] * 4, status=["infeasible", "dominated", "stopped", "ok"], saved_s=[60.0, 120.0, 5.0, 7200.0])
    assert saved(df.assign(wall_s=10.0)) == [
        "saved 2.1 h of 2.1 h: 1.0 min pruned: out of memory by arithmetic, 2.0 min pruned: speed bound below the front, "
        "2.0 h quality reused, 5 s stopped early"
    ]
    assert saved(df.assign(saved_s=None)) == []


def test_violations_and_drift_have_one_line() -> None:
    df = trials((1, 1, 1), (2, 2, 2), feasible=[False, True], violated=["perplexity <= 1", None], run=[0, 0])
    assert violations(df) == ["1 violate a constraint, most often perplexity <= 1"]
    assert health(df.assign(drift=[0.9, None]))[-1] == "sentinel speed 90% to 90% of the earlier median in 1 runs"


def test_contribution_needs_two_origins() -> None:
    df = trials((10, 2, 5), (4, 1, 5), origin=["sampler", "random"])
    assert contribution(df)[0] == "contribution by origin:" and len(contribution(df)) == 3
    assert contribution(df.assign(origin="sampler")) == []


def test_undecided_trials_are_listed() -> None:
    every = standings(trials((10, 2, 5), (4, 1, 5)))
    assert undecided(every) == []
    assert "because of near rivals: 1, 2;" in undecided(every.assign(standing="undecided"))[0]


def test_a_study_without_a_front_prints_the_last_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = [row(t, {"cache_gb": 0.02}, (0.0, 0.0, 0.0), status="oom", status_reason="too much") for t in (1, 2)]
    report(tmp_path, [{**r, **dict.fromkeys(OBJECTIVES)} for r in failed])
    assert "no feasible trial yet; last error: too much" in capsys.readouterr().out
