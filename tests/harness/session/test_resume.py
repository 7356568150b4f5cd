"""Killed at any moment, the same command goes on: no trial lost, none doubled, nothing left running."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState
from support import Cli, spawn

from harness.results.parquet import part_path
from harness.results.rows import read_rows, read_trials
from harness.results.writing import write_row
from harness.space.space import space_from_config


def storage(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="demo", storage=f"sqlite:///{folder / 'study.db'}")


def finished(folder: Path) -> dict[int, tuple[dict, list[float]]]:
    """What Optuna knows of each row's trial: its setting, without what has no effect, and the objectives."""
    space = space_from_config(yaml.safe_load((folder / "rounds" / "01" / "space.yaml").read_text()), {})
    return {t.user_attrs["trial"]: (space.values(t.params), t.values) for t in storage(folder).get_trials() if t.values}


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def test_kill_9_at_random_moments(place: Path) -> None:
    wanted, rng = 6, random.Random(5)
    for _ in range(3):
        process = spawn(place, f"budget.trials={wanted}")
        time.sleep(rng.uniform(1.5, 6.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        trials = place / "results" / "demo" / "trials"
        if trials.exists() and any(trials.glob("part-*")):
            pd.read_parquet(trials)  # readable at any moment
    status, _, err = finish(spawn(place, f"budget.trials={wanted}"))
    assert (status, err) == (0, "")
    df = read_trials(place / "results" / "demo")
    assert len(df) == 1 + wanted and df["trial"].is_unique  # a proposal that was cut off leaves a gap
    assert (df["status"] == "ok").all()
    told = storage(place / "results" / "demo").get_trials()
    assert not [t for t in told if t.state == TrialState.RUNNING]
    complete = sorted(t.user_attrs["trial"] for t in told if t.state == TrialState.COMPLETE)
    assert complete == sorted(df["trial"])[1:]


def test_a_killed_trial_is_run_again_and_one_killed_three_times_is_a_crash(place: Path, cli: Cli) -> None:
    runs = place / "checkpoint" / "runs.log"
    slow = place / "checkpoint" / "slow_s"
    slow.write_text("60")
    for starts in (1, 2, 3):
        process = spawn(place, "budget.trials=1")
        while not runs.exists() or len(runs.read_text().splitlines()) < starts:
            time.sleep(0.05)
        child = json.loads((place / "results" / "demo" / "child.json").read_text())["pid"]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)  # the trial ends with the search
    slow.unlink()
    assert cli("budget.trials=1")[0] == 0
    rows = read_trials(place / "results" / "demo")
    assert len(rows) == 2  # the reference is not the one trial of the budget
    row = rows.iloc[0]
    assert (row["trial"], row["status"], row["attempt"]) == (0, "crash", 3)
    assert "logs/trial-000000-00.log" in row["status_reason"]


def test_damage_is_mended(place: Path, cli: Cli) -> None:
    """A finished study, run again: as it is, with a row cut short, with its storage removed, and with it damaged."""
    folder = place / "results" / "demo"
    assert cli("budget.trials=3")[0] == 0
    rows, told = read_trials(folder), finished(folder)

    status, out, err = cli("budget.trials=3")
    assert (status, err) == (0, "")
    assert "done; for more: budget.trials=6" in out
    assert "recommended settings:" in out
    pd.testing.assert_frame_equal(rows, read_trials(folder))

    parts = read_rows(folder)  # as they lie before they are put together
    (folder / "trials.parquet").unlink()
    for row in parts:
        write_row(folder, row)
    whole = part_path(folder, 2).read_bytes()
    part_path(folder, 2).write_bytes(whole[: len(whole) // 2])
    status, _, err = cli("budget.trials=3")
    assert (status, err.count("\n")) == (0, 1)
    assert "part-000002-00.parquet is cut short or damaged: moved to" in err
    assert (folder / "damaged" / "part-000002-00.parquet").exists()
    columns = ["trial", "cache_gb", "expert_bits", "decode_tok_s", "perplexity"]
    pd.testing.assert_frame_equal(rows[columns], read_trials(folder)[columns])

    for content in (None, b"SQLite format 3\x00" + os.urandom(4000)):
        for path in folder.glob("study.db*"):
            path.unlink()
        if content:
            (folder / "study.db").write_bytes(content)
        assert cli("budget.trials=3")[0] == 0
        assert finished(folder) == told
    assert (folder / "damaged-study.db").exists()


def test_a_second_search_on_the_same_study_is_refused(place: Path, cli: Cli) -> None:
    (place / "checkpoint" / "slow_s").write_text("30")
    first = spawn(place)
    while not (place / "checkpoint" / "runs.log").exists():
        time.sleep(0.05)
    status, _, err = cli()
    assert (status, err.count("\n")) == (2, 1)
    assert f"in use by another search (process {first.pid})" in err
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)


def test_ctrl_c_ends_after_the_trial_and_twice_at_once(place: Path) -> None:
    (place / "checkpoint" / "slow_s").write_text("1.5")
    runs = place / "checkpoint" / "runs.log"
    process = spawn(place)
    while not runs.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, err) == (130, "")
    assert "stopping after this run" in out
    assert "stopped at 0 of 24 trials; the same command goes on" in out
    assert read_trials(place / "results" / "demo")["trial"].tolist() == [0]

    (place / "checkpoint" / "slow_s").write_text("60")
    process = spawn(place)
    while len(runs.read_text().splitlines()) < 2:
        time.sleep(0.05)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    status, out, _ = finish(process)
    assert (status, out.splitlines()[-1]) == (130, "stopped at 0 of 24 trials; the same command goes on")
    assert read_trials(place / "results" / "demo")["trial"].tolist() == [0]
    assert json.loads((place / "results" / "demo" / "running.json").read_text())["attempt"] == 0
