"""Counts: rows, report, journal, status and plot of a study agree on trials and runs."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import Cli

from harness import status
from harness.analysis.counts import Progress, count, left_s, progress
from harness.results.columns import NAMES, NOT_RUN
from harness.results.rows import read_rows, read_trials
from harness.run.supervise import Interrupted, Outcome
from harness.show.plots.front_plot import draw_front


def row(trial: int, state: str = "ok", origin: str = "sampler", run: int = 0, **more: Any) -> dict[str, Any]:
    return {"trial": trial, "run": run, "status": state, "origin": origin, "round": 1, "started_at": 1 + trial,
            "wall_s": 9.0, "waited_s": 1.0, **more}  # fmt: skip


ROWS = [
    row(0, origin="reference"),
    row(0, origin="again", run=1),
    row(1, origin="anchor"),
    row(1, origin="sentinel", run=1),
    row(1, origin="confirm", run=2),
    row(2, "crash"),
    row(3, "infeasible"),
    row(4, "stopped"),
    row(5, "dominated"),
    row(6),
    row(6, origin="confirm", run=1),
]


def test_trials_are_settings_that_ran_and_the_reference_is_none() -> None:
    found = count(ROWS)
    assert (found.trials, found.reference, found.runs) == (4, "ok", 9)
    assert found.fates == {"ok": 2, "crash": 1, "stopped": 1}
    assert found.not_run == {"infeasible": 1, "dominated": 1}
    assert str(found) == (
        "4 trials (2 ok, 1 crash, 1 stopped), 2 settings not run (1 infeasible, 1 dominated), reference measured; "
        "2 confirmations, 1 repeat of suspect runs, 1 sentinel"
    )
    assert count(pd.DataFrame(ROWS, columns=list(NAMES))) == found
    assert str(count([row(0, "oom", "reference"), row(1), row(2, "infeasible")])) == (
        "1 trial (ok), 1 setting not run (infeasible), reference oom"
    )
    assert str(count([])) == "0 trials"


def test_progress_covers_confirmation() -> None:
    assert progress(ROWS, ROWS, 8, 0.5) == Progress(4, 8, runs_left=6)  # four trials, and two runs of confirmation
    found = progress(ROWS, ROWS, 4, 1.5, confirming=1)
    assert found == Progress(4, 4, 1, 2, 6, 4)
    assert str(found) == "4 of 4 trials, confirming 2 of at most 6"
    assert str(Progress(4, 4, 1, 6, 6)) == "4 of 4 trials, confirming 6 of 6"
    others = [row(9), row(10)]  # another machine confirms its own
    assert progress([*ROWS, *others], ROWS, 6, 0.5, confirming=1) == Progress(6, 6, 1, 2, 2, 0)
    assert left_s(ROWS, 7) == pytest.approx(7 * 90 / 7)  # seven trials and confirmations in 90 s; a sentinel is overhead
    assert left_s([], 7) is None


class PowerCut(BaseException):
    """Ends a search at once; session/test_resume.py does so with `kill -9`."""


def test_a_study_of_two_rounds_killed_and_resumed_counts_the_same_everywhere(place: Path, cli: Cli, in_process: Any) -> None:
    given = ("rounds=2", "budget.trials=4", "confirm.share=0.5", "sentinel.every=4", "protocol.stop_error=0",
             "device.memory_gb=0.11", "device.usable_share=1", "search_space.cache_gb.high=0.075",
             "search_space.expert_bits=8", "~search_space.cold_bits", "~search_space.hot_share")  # fmt: skip
    folder = place / "results" / "demo"

    def cut(figures: dict[str, Any], n: int) -> dict[str, Any]:
        if len(read_rows(folder)) >= 4:  # in the second round
            raise PowerCut
        return figures

    in_process(cut)
    with pytest.raises(PowerCut):
        cli(*given)
    in_process(lambda figures, n: figures)
    code, out, err = cli(*given)
    assert (code, err) == (0, "")

    df = read_trials(folder)
    ran = df[~df["status"].isin(NOT_RUN) & (df["trial"] != 0)]
    counts = count(df)
    assert counts.trials == ran["trial"].nunique() == 4
    assert counts.runs == (~df["status"].isin(NOT_RUN)).sum()
    assert ran[ran["run"] == 0]["round"].value_counts().to_dict() == {1: 2, 2: 2}
    assert counts.again["confirm"] == (df["origin"] == "confirm").sum() > 0

    assert str(counts) in out and out.splitlines()[-1] == "done; for more: budget.trials=8"
    found = json.loads(json.dumps(status.status(folder)[0]))
    assert found["rows"]["counts"] == asdict(counts)
    assert (found["progress"]["trials_done"], found["progress"]["trials_wanted"], found["search"]) == (4, 4, "finished")
    assert str(counts) in " ".join(str(draw_front(df).texts[1].get_text()).split())
    journal = (folder / "journal.md").read_text()
    for number in (1, 2):
        assert f"{count(df[df['round'] == number])}. " in journal
    assert re.findall(r"budget\.trials=(\d+)", journal) == ["2", "2"]


def test_budget_of_one_measures_the_reference_and_one_trial(place: Path, direct: Cli) -> None:
    code, out, _ = direct("budget.trials=1")
    assert code == 0 and "1 trial (ok), reference measured" in out
    assert read_trials(place / "results" / "demo")["origin"].tolist() == ["reference", "anchor"]


def test_spent_hours_are_reported(place: Path, cli: Cli) -> None:
    code, out, _ = cli("budget.trials=3", "budget.hours=0")
    assert (code, out.splitlines()[-1]) == (0, "budget.hours=0 is spent, at 0 of 3 trials; the same command resumes")
    assert status.main([str(place / "results" / "demo")]) == 0


def test_sigterm_reports_the_progress(cli: Cli, child: Any) -> None:
    def stopped(request: dict[str, Any]) -> Outcome:
        signal.raise_signal(signal.SIGTERM)
        raise Interrupted

    child(stopped)
    code, out, err = cli("budget.trials=3")
    assert (code, err) == (130, "")
    assert out.splitlines()[-1] == "stopped at 0 of 3 trials; the same command resumes"
