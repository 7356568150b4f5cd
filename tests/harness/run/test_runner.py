"""Runner in whole sessions without child processes: quality is measured once, wrong answers and constraints are marked."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from support import QUICK, Cli

from engine import Knobs
from harness.analysis.pareto import front
from harness.analysis.runs.hours import hours, parts
from harness.results.rows import read_trials
from harness.run.supervise import Interrupted, Outcome

FINE = {"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}


def test_quality_is_measured_once_for_each_lossy_setting(session: Callable[..., pd.DataFrame]) -> None:
    df = session("budget.trials=16")
    scored = df[df["quality_from_trial"].isna()]
    assert scored["expert_bits"].fillna(0).is_unique or len(scored) == scored["expert_bits"].nunique(dropna=False) + 1
    reused = df[df["quality_from_trial"].notna()]
    assert len(reused) > 4
    source = df.set_index("trial")["perplexity"]
    assert np.allclose(reused["perplexity"], source.loc[reused["quality_from_trial"].astype(int)])
    assert (reused["saved_s"] == 0.4).all()


def test_constraints_are_in_the_rows_and_exclude_points_from_the_front(session: Callable[..., pd.DataFrame]) -> None:
    df = session("budget.trials=10", "constraints=['peak_memory_gb <= 0.05','perplexity <= 1.01 * reference']")
    ran = df[df["status"] == "ok"]
    broken = (ran["peak_memory_gb"] > 0.05) | (ran["perplexity"] > 1.01 * ran["perplexity"].iloc[0])
    assert broken.any() and not broken.all()
    assert (ran["feasible"] == ~broken).all()
    assert ran["violated"].notna().equals(broken)
    best = front(df)
    assert len(best) and (best["peak_memory_gb"] <= 0.05).all()


def test_a_wrong_answer_is_no_result(session: Callable[..., pd.DataFrame]) -> None:
    def wrong(figures: dict[str, Any], n: int) -> dict[str, Any]:
        return figures | {"timed_nll": 2.0 + 0.5 * (n == 7)}

    df = session("budget.trials=8", "search_space.expert_bits=4", alter=wrong)
    bad = df[df["status"] == "wrong"]
    assert len(bad) == 1
    assert "lossless knobs only" in bad["status_reason"].iloc[0]
    assert bad["decode_tok_s"].isna().all()


def test_scoring_that_ended_early_decides_once_and_is_completed_by_a_confirmation(place: Path, cli: Cli, child: Any) -> None:
    """Perplexity is constrained and no objective: settings of 3 bits are clear of both bounds, those of 2 violate one."""

    def answer(request: dict[str, Any]) -> Outcome:
        bits, stop = request["knobs"].get("expert_bits"), request["stop_scoring"]
        perplexity = {None: 4.0, 4: 4.02, 3: 4.02, 2: 9.0}[bits]
        fine = {"decode_tok_s": 40.0 / (bits or 8), "peak_memory_gb": 0.02 * (bits or 8), "scored_tokens": 900}
        if not request["protocol"]["score"]:
            return Outcome("ok", figures=fine | {"scored_tokens": None}, wall_s=1.0)
        if stop is None:
            return Outcome("ok", figures=fine | {"perplexity": perplexity}, wall_s=1.0, score_s=3.0)
        assert [b["text"] for b in stop["bounds"]] == ["perplexity <= 1.02 * reference", "recommend.max_loss"]
        ended = {"reason": "clear", "tokens": 300, "at_least": 0.99 * perplexity, "at_most": 1.001 * perplexity}
        return Outcome("ok", figures=fine, wall_s=1.0, score_s=1.0, scoring_stopped=ended)

    requests = child(answer)
    space = ("search_space.expert_bits={type:ordinal,values:[2,3,4]}", "~search_space.cold_bits", "~search_space.hot_share")
    given = ("objectives=[decode_tok_s,peak_memory_gb]", "constraints=['perplexity <= 1.02 * reference']")
    status, _, _ = cli("budget.trials=14", "confirm.share=0.5", "sampler.name=random", *space, *given)
    df = read_trials(place / "results" / "demo")
    assert status == 0
    ended = df[df["scoring_stopped"].notna()]
    assert ended["perplexity"].isna().all() and (ended["scored_tokens"] == 300).all()
    assert ended["feasible"].tolist() == (ended["expert_bits"] == 3).tolist()
    own = ended[ended["quality_from_trial"].isna()]
    assert sorted(own["expert_bits"]) == [2, 3] and (own["saved_s"] == 2.0).all()
    assert sum(r["stop_scoring"] is not None for r in requests) == 2
    confirmed = df[(df["origin"] == "confirm") & (df["expert_bits"] == 3)]
    assert len(confirmed) and (confirmed["perplexity"] == 4.02).all() and (confirmed["scored_tokens"] == 900).all()
    assert (df[df["expert_bits"].isna()]["perplexity"] == 4.0).all()


def test_sleep_fails_no_run_and_makes_its_figures_suspect(place: Path, cli: Cli, child: Any) -> None:
    """A run that hangs once after sleep, one that fails twice after it, and one that ends well after it."""
    fine = {"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}
    ends = iter(["ok", "ok", "hang", "ok", "slow sleep", "ok", "timeout", "timeout"])

    def answer(request: dict[str, Any]) -> Outcome:
        end = next(ends, "ok")
        if end in ("hang", "timeout"):
            return Outcome(end, "no sign", wall_s=1.0, slept_s=3600.0)
        return Outcome("ok", figures=fine, wall_s=1.0, slept_s=60.0 if end == "slow sleep" else 0.0)

    requests = child(answer)
    status, out, _ = cli("budget.trials=4", *QUICK)
    df = read_trials(place / "results" / "demo")
    assert status == 0 and len(requests) == len(df) + 2
    assert out.count("it is measured again") == 2
    assert "hang (no sign) after the machine slept or stood still for 3600 s" in out
    first = df[df["run"] == 0]
    assert first["status"].tolist() == ["ok", "ok", "ok", "ok", "timeout"]
    assert first["suspect"].tolist()[3:] == [f"sleep: the machine slept or stood still for {s} s" for s in (60, 3600)]
    assert df[df["origin"] == "again"]["trial"].tolist() == [3]
    assert df.sort_values("sequence")["started_at"].is_monotonic_increasing
    assert sorted(df["sequence"]) == list(range(1, len(df) + 1))


def test_a_run_that_is_repeated_after_sleep_keeps_the_time_of_its_first_start(place: Path, cli: Cli, child: Any) -> None:
    ends = iter(["ok", "hang"])

    def answer(request: dict[str, Any]) -> Outcome:
        time.sleep(0.05)
        if next(ends, "ok") == "hang":
            return Outcome("hang", "no sign", wall_s=0.05, slept_s=2.0)
        return Outcome("ok", figures=FINE, wall_s=0.05, parts={"start_s": 0.01})

    child(answer)
    assert cli("budget.trials=1", "protocol.cool_down_s=0.1", *QUICK)[0] == 0
    first, again = read_trials(place / "results" / "demo").to_dict("records")
    assert (again["lost_s"], first["start_s"]) == (2.05, 0.01) and np.isnan(first["lost_s"])
    assert 0.1 <= first["cool_down_s"] < 0.2 <= again["cool_down_s"]
    assert parts(again)["lost to failures"] == 2.05


def test_the_time_of_an_interrupted_run_is_in_the_row_of_the_next_command(place: Path, cli: Cli, child: Any) -> None:
    """Three commands: one is interrupted in its second run, one in the same run, and one ends."""
    seen: list[int] = []

    def answer(request: dict[str, Any]) -> Outcome:
        seen.append(request["trial"])
        time.sleep(0.2)
        if len(seen) in (2, 3):
            signal.raise_signal(signal.SIGTERM)
            raise Interrupted
        return Outcome("ok", figures=FINE, wall_s=0.2)

    child(answer)
    for _ in range(3):
        cli("budget.trials=2", *QUICK)
    df = read_trials(place / "results" / "demo").sort_values("sequence")
    assert seen[1] == seen[2] == seen[3] and df["session"].nunique() == 2
    repeated = df[df["lost_s"].notna()]
    assert len(repeated) == 1 and 0.4 <= repeated["lost_s"].iloc[0] < 1.0
    found = hours(df.to_dict("records"))
    assert found.agrees and found.of("lost to failures") == repeated["lost_s"].iloc[0]


def test_settings_that_are_not_run_have_the_time_before_them(session: Callable[..., pd.DataFrame]) -> None:
    df = session("budget.trials=3", "device.memory_gb=0.08", "device.usable_share=1", "search_space.cache_gb.high=0.075")
    pruned = df[df["status"] == "infeasible"]
    assert len(pruned) and pruned["between_s"].gt(0).all() and pruned["session_s"].gt(0).all()
    ordered = df.sort_values("sequence")
    assert ordered["session_s"].is_monotonic_increasing
    assert (ordered["between_s"].sum() <= ordered["session_s"].max()) and ordered["session"].nunique() == 1


def test_every_row_names_what_it_was_measured_with(session: Callable[..., pd.DataFrame]) -> None:
    df = session("budget.trials=6", "protocol.repeats=2")
    names = ("row_id", "machine", "model", "eval_fingerprint", "commit", "optuna", "space", "round", "seed",
             "warm_up_tokens", "headrace_version")  # fmt: skip
    for name in names:
        assert df[name].notna().all(), name
    assert df["row_id"].is_unique
    assert (df[df["origin"] == "repeat"]["run"] == 1).all() and (df["origin"] == "repeat").sum() >= 4
    assert set(dataclasses.asdict(Knobs())) <= set(df.columns)
