"""Resume: after a kill at any point the same command continues; no trial is lost or doubled, no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psutil
import pytest
from optuna.trial import TrialState
from support import QUICK, Cli, spawn, wait_for

from engine.effective import effective
from engine.setting.setting_file import read_setting
from harness.results.parquet import part_path
from harness.results.rows import read_rows, read_trials
from harness.results.writing import write_row
from harness.run.supervise import Outcome


def storage(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="demo", storage=f"sqlite:///{folder / 'study.db'}")


def finished(folder: Path) -> dict[int, tuple[dict, list[float]]]:
    """Optuna's finished trials: setting, without knobs that have no effect, and objectives."""
    return {t.user_attrs["trial"]: (effective(t.params), t.values) for t in storage(folder).get_trials() if t.values}


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_kill_9_before_during_and_after_a_run(place: Path, direct: Cli) -> None:
    wanted, folder, runs = 4, place / "results" / "demo", place / "checkpoint" / "runs.log"
    moments: list[Callable[[], object]] = [
        (folder / "study.db").exists,
        runs.exists,
        lambda: len(list((folder / "trials").glob("part-*"))) or (folder / "trials.parquet").exists(),
    ]
    for moment in moments:
        process = spawn(place, f"budget.trials={wanted}")
        wait_for(moment, by=process)
        kill(process)
        trials = folder / "trials"
        if trials.exists() and any(trials.glob("part-*")):
            pd.read_parquet(trials)  # readable at any moment
    status, _, err = direct(f"budget.trials={wanted}")
    assert (status, err) == (0, "")
    df = read_trials(folder)
    assert len(df) == 1 + wanted and df["trial"].is_unique  # a proposal that was cut off leaves a gap
    assert (df["status"] == "ok").all()
    stored = storage(folder).get_trials()
    assert not [t for t in stored if t.state == TrialState.RUNNING]
    complete = sorted(t.user_attrs["trial"] for t in stored if t.state == TrialState.COMPLETE)
    assert complete == sorted(df["trial"])[1:]


def test_the_child_ends_with_a_killed_search_and_is_run_again(place: Path, direct: Cli) -> None:
    """The limit of three starts is tested in run/test_in_flight.py."""
    runs, folder = place / "checkpoint" / "runs.log", place / "results" / "demo"
    slow = place / "checkpoint" / "slow_s"
    slow.write_text("60")
    process = spawn(place, "budget.trials=1")
    wait_for(runs.exists, by=process)
    child = json.loads((folder / "child.json").read_text())["pid"]
    kill(process)
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, 30)
    slow.unlink()
    assert direct("budget.trials=1")[0] == 0
    rows = read_trials(folder)
    assert rows["status"].tolist() == ["ok", "ok"]  # the reference is not the one trial of the budget
    assert rows["attempt"].tolist() == [2, 1]


def test_damage_is_repaired(place: Path, direct: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished study, run again: unchanged, with a truncated row, without its storage, and with a damaged one."""
    folder = place / "results" / "demo"
    assert direct("budget.trials=3")[0] == 0
    rows, stored = read_trials(folder), finished(folder)

    status, out, err = direct("budget.trials=3")
    assert (status, err) == (0, "")
    assert "done; for more: budget.trials=6" in out
    assert "recommended settings:" in out
    pd.testing.assert_frame_equal(rows, read_trials(folder))

    monkeypatch.setattr("harness.show.report.report", lambda *_, **__: None)
    parts = read_rows(folder)  # back to one file per row, as before compaction
    (folder / "trials.parquet").unlink()
    for row in parts:
        write_row(folder, row)
    whole = part_path(folder, 2).read_bytes()
    part_path(folder, 2).write_bytes(whole[: len(whole) // 2])
    status, _, err = direct("budget.trials=3")
    assert (status, err.count("\n")) == (0, 1)
    assert "part-000002-00.parquet is truncated or damaged: moved to" in err
    assert (folder / "damaged" / "part-000002-00.parquet").exists()
    columns = ["trial", "cache_gb", "expert_bits", "decode_tok_s", "perplexity"]
    pd.testing.assert_frame_equal(rows[columns], read_trials(folder)[columns])

    for content in (None, b"SQLite format 3\x00" + os.urandom(4000)):
        for path in folder.glob("study.db*"):
            path.unlink()
        if content:
            (folder / "study.db").write_bytes(content)
        assert direct("budget.trials=3")[0] == 0
        assert finished(folder) == stored
    assert (folder / "damaged-study.db").exists()


def test_ctrl_c_ends_the_search_after_the_run(place: Path, cli: Cli, child: Any) -> None:
    def interrupt(request: dict[str, Any]) -> Outcome:
        os.kill(os.getpid(), signal.SIGINT)
        return Outcome("ok", figures={"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}, wall_s=1.0)

    child(interrupt)
    status, out, err = cli(*QUICK)
    assert (status, err) == (130, "")
    assert "stopping after this run" in out
    assert "stopped at 0 of 24 trials" in out
    assert read_trials(place / "results" / "demo")["trial"].tolist() == [0]


def test_a_stopped_search_leaves_its_setting_files(
    place: Path, cli: Cli, child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.show.report.report", lambda folder, rows: None)  # it writes them as well

    def interrupt(request: dict[str, Any]) -> Outcome:
        if request["knobs"].get("cache_gb") is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return Outcome("ok", figures={"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}, wall_s=1.0)

    child(interrupt)
    assert cli(*QUICK)[0] == 130
    folder = place / "results" / "demo"
    assert read_trials(folder)["trial"].tolist() == [0, 1]
    setting = read_setting(folder / "best" / "fastest_lossless.yaml")
    assert (setting.trial, setting.confirmed, setting.measured["decode_tok_s"]["value"]) == (1, False, 10.0)


@pytest.mark.parametrize("pause_s", [0.3])
def test_ctrl_c_twice_ends_the_run_at_once(place: Path, pause_s: float) -> None:
    (place / "checkpoint" / "slow_s").write_text("60")
    process = spawn(place)
    wait_for((place / "checkpoint" / "runs.log").exists, by=process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(pause_s)  # two signals at once would be delivered as one
    out, _ = process.communicate(timeout=50)
    assert process.returncode == 130 and out.splitlines()[-1].startswith("stopped at 0 of 24 trials")
    folder = place / "results" / "demo"
    assert not read_rows(folder)
    assert json.loads((folder / "running.json").read_text())["attempt"] == 0
