"""Whole sessions on the fake engine without child processes: rounds, control runs, confirmation, budgets, failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState
from support import QUICK, Cli

from harness import status
from harness.analysis.pareto import front
from harness.decisions.recommend import rules_of
from harness.results.rows import read_rows
from harness.run import runner
from harness.run.supervise import Outcome
from harness.session import loop

FIGURES = {"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}


def well(request: dict[str, Any]) -> Outcome:
    return Outcome("ok", figures=FIGURES, wall_s=1.0)


def stored(folder: Path) -> dict[int, tuple[TrialState, float]]:
    """Optuna's trials: state, and by how much memory is exceeded."""
    study = optuna.load_study(study_name="demo", storage=f"sqlite:///{folder / 'study.db'}")
    trials = [t for t in study.get_trials() if "trial" in t.user_attrs]
    return {t.user_attrs["trial"]: (t.state, t.constraints.get("possible", 0.0)) for t in trials}


def test_rounds_change_the_space_and_the_journal_reports_it(session: Callable[..., pd.DataFrame], place: Path) -> None:
    command = ("rounds=2", "budget.trials=64", "search_space.cache_gb.high=0.02", "sampler.name=random")
    df = session(*command)
    folder = place / "results" / "demo"
    assert df["round"].value_counts().to_dict() == {1: 33, 2: 32}  # round 1 holds the reference as well
    first, second = (yaml.safe_load((folder / "rounds" / n / "space.yaml").read_text()) for n in ("01", "02"))
    assert second != first
    wider = df[(df["round"] == 2) & (df["cache_gb"] > 0.02)]
    assert second["cache_gb"]["high"] > 0.02 and len(wider)  # the fake engine is faster with a larger cache
    journal = (folder / "journal.md").read_text()
    for part in ("## Round 1", "## Round 2", "widen cache_gb", "rounds/02/space.yaml", "python -m harness.search"):
        assert part in journal, part
    again = session(*command)
    pd.testing.assert_frame_equal(df, again)
    assert (folder / "journal.md").read_text() == journal


def test_a_drift_makes_runs_suspect_until_they_are_repeated(session: Callable[..., pd.DataFrame]) -> None:
    def slow(figures: dict[str, Any], n: int) -> dict[str, Any]:
        return figures | {"decode_tok_s": figures["decode_tok_s"] * (0.5 if 9 <= n < 16 else 1.0)}

    df = session("budget.trials=16", "sentinel.every=4", alter=slow)
    sentinels = df[df["origin"] == "sentinel"].sort_values("started_at")
    assert sentinels["drift_since"].notna().any() and sentinels["drift_since"].isna().any()
    assert len(df[df["origin"] == "again"]) >= 3
    speeds = df[(df["run"] == 0) & (df["status"] == "ok")].set_index("trial")["decode_tok_s"]
    again = df[df["origin"] == "again"].set_index("trial")["decode_tok_s"]
    assert (again / speeds.loc[again.index] > 1.5).any()


def test_confirmation_repeats_the_front_within_its_budget(session: Callable[..., pd.DataFrame], place: Path) -> None:
    rng = np.random.default_rng(3)

    def noisy(figures: dict[str, Any], n: int) -> dict[str, Any]:
        return figures | {"decode_tok_s": figures["decode_tok_s"] * float(np.exp(0.1 * rng.standard_normal()))}

    df = session("budget.trials=20", "confirm.share=0.5", "confirm.runs=3", alter=noisy)
    confirmed = df[df["origin"] == "confirm"]
    assert 4 <= len(confirmed) <= 10
    assert front(df)["confirmed"].any()
    folder = place / "results" / "demo"
    assert rules_of(folder) == {"runs": 3, "within": 0.05, "error": 0.03}  # the report uses the study's own rules
    assert (confirmed.groupby("trial")["run"].min() >= 1).all()


def test_other_objectives(session: Callable[..., pd.DataFrame], place: Path) -> None:
    df = session("budget.trials=4", "objectives=[prefill_tok_s,bytes_per_token]", plots=True)
    assert df["objectives"].unique().tolist() == ["prefill_tok_s,bytes_per_token"]
    assert len(front(df))
    assert (place / "results" / "demo" / "front.png").exists()


def test_the_time_budget_ends_a_session_and_the_same_command_resumes(
    session: Callable[..., pd.DataFrame], place: Path
) -> None:
    session("budget.trials=4", "budget.hours=0", rows=False)
    assert not (place / "results" / "demo" / "trials.parquet").exists()
    assert len(session("budget.trials=4")) == 5


def test_ten_failures_with_one_cause_stop_the_session(place: Path, cli: Cli, child: Any) -> None:
    folder = place / "results" / "demo"
    child(lambda r: Outcome("crash", f"exit status {r['trial']}: /dev/disk{r['trial']} is on fire", wall_s=1.0))
    code, _, err = cli(*QUICK, "budget.trials=30")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("10 runs failed in a row with one cause (crash: exit status N: PATH is on fire); fix it")
    assert [r["status"] for r in read_rows(folder)] == ["crash"] * 10
    assert set(stored(folder).values()) == {(TrialState.COMPLETE, 1.0)}
    assert status.main([str(folder)]) == 1
    child(lambda r: Outcome("crash", "a" if r["trial"] % 2 else "b", wall_s=1.0))  # two causes do not stop it
    assert cli(*QUICK, "budget.trials=12")[0] == 0
    assert len(read_rows(folder)) == 13


def test_settings_that_exceed_memory_by_prediction_are_not_run(place: Path, cli: Cli, child: Any) -> None:
    """The fake engine has a footprint; more than half of the space does not fit."""
    requests = child(well)
    space = ["search_space.cache_gb={type:float,low:0.01,high:0.04}", *(f"~search_space.{n}" for n in ("expert_bits",
             "cold_bits", "hot_share"))]  # fmt: skip
    limits = ["device.memory_gb=0.037", "device.usable_share=1"]
    assert cli(*QUICK, "budget.trials=6", *space, *limits)[0] == 0
    rows = read_rows(place / "results" / "demo")
    predicted = [r for r in rows if r["status"] == "infeasible"]
    assert len(predicted) >= 4 and all(r["predicted_peak_gb"] > 0.037 and not r["wall_s"] for r in predicted)
    assert len(requests) == sum(r["status"] == "ok" for r in rows) == 6  # the budget counts trials that ran
    assert {r["trial"] for r in predicted}.isdisjoint(r["trial"] for r in requests)
    possible = stored(place / "results" / "demo")
    assert all(possible[r["trial"]][1] == pytest.approx(r["predicted_peak_gb"] / 0.037 - 1) for r in predicted)


def test_out_of_memory_is_stored_as_complete_with_its_excess(place: Path, cli: Cli, child: Any) -> None:
    child(lambda r: Outcome("oom", "0.5 GB are above the limit", seen_peak_gb=0.5) if r["trial"] in (3, 4) else well(r))
    assert cli(*QUICK, "budget.trials=5", "device.memory_gb=0.4", "device.usable_share=1")[0] == 0
    trials = stored(place / "results" / "demo")
    assert {n for n, (_, over) in trials.items() if over > 0} == {3, 4}
    assert {state for state, _ in trials.values()} == {TrialState.COMPLETE}
    assert trials[3][1] == pytest.approx(0.5 / 0.4 - 1)


@pytest.mark.parametrize("scored", [False, True])
def test_what_can_wait_is_done_while_a_run_is_scored(
    place: Path, cli: Cli, child: Any, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    """Forecasts; without scoring they are due after the run."""
    child(well)
    inner, events = runner.run_child, []

    def run_child(*given: Any, **more: Any) -> Outcome:
        events.append("run")
        if scored:
            more["untimed"]()
        events.append("end")
        return inner(*given, **more)

    def forecast(values: Any, rows: list[Any], when: Any) -> dict[str, float]:
        events.append(f"forecast after {len(rows)} rows")
        return {"forecast_tok_s": 1.0 + len(rows)}

    monkeypatch.setattr(runner, "run_child", run_child)
    monkeypatch.setattr(loop, "started", lambda *_: forecast)

    assert cli("budget.trials=4", "search_space.cache_gb.high=0.02", *QUICK)[0] == 0
    rows = sorted(read_rows(place / "results" / "demo"), key=lambda row: row["sequence"])
    assert [row["forecast_tok_s"] for row in rows] == [1.0 + n for n in range(5)]
    starts = [n for n, event in enumerate(events) if event == "run"]
    second = events[starts[1] : starts[2]]
    if scored:
        assert second == ["run", "forecast after 1 rows", "end"]
    else:
        assert second == ["run", "end", "forecast after 1 rows"]
