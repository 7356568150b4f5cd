"""A search alone at night: what it decides when machine, disk or run after run fails. Nearly all without a child."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from support import Cli, spawn

from harness import ResultsError, status
from harness.machine import identity as machine
from harness.machine.quiet import machine_lock
from harness.propose.ask_tell import Proposal
from harness.results.rows import read_rows
from harness.run import runner
from harness.run.runner import Job, Runner
from harness.run.supervise import Interrupted, Outcome, _fate
from harness.session import loop

FIGURES = {"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}
QUICK = ("sampler.name=random", "protocol.stop_error=0")
Told = dict[int, tuple[TrialState, float]]


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any]], Outcome]], list[dict[str, Any]]]:
    """Put a function in the child's place, and no report at the end; returns the list of the requests that it gets."""

    monkeypatch.setattr("harness.report.report", lambda *args, **more: None)  # it draws

    def put(answer: Callable[[dict[str, Any]], Outcome]) -> list[dict[str, Any]]:
        requests: list[dict[str, Any]] = []

        def run_child(request: Path, log: Path, **rest: Any) -> Outcome:
            requests.append(json.loads(request.read_text()))
            return answer(requests[-1])

        monkeypatch.setattr(runner, "run_child", run_child)
        return requests

    return put


def well(request: dict[str, Any]) -> Outcome:
    return Outcome("ok", figures=FIGURES, wall_s=1.0)


def told(folder: Path) -> Told:
    study = optuna.load_study(study_name="demo", storage=f"sqlite:///{folder / 'study.db'}")
    trials = [t for t in study.get_trials() if "trial" in t.user_attrs]
    return {t.user_attrs["trial"]: (t.state, t.constraints.get("possible", 0.0)) for t in trials}


def journal(folder: Path, **request: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"trial": 0, "run": 0, "attempt": 1, "boot_id": machine.boot_id(), "knobs": {}, **request}
    (folder / "running.json").write_text(json.dumps(whole))


def starts(folder: Path, trial: int = 5, run: int = 0) -> tuple[int, bool]:
    plan: Any = SimpleNamespace(folder=folder, files=())
    one = Runner(plan, lambda: "", lambda: False, lambda text: None)
    return one._starts(Job(Proposal(trial, "sampler", {"read_threads": 4}), run))


def test_the_crash_journal_tells_a_lost_search_from_a_lost_machine(tmp_path: Path) -> None:
    same = {"trial": 5, "knobs": {"read_threads": 4}}
    assert starts(tmp_path) == (1, False)
    journal(tmp_path, **same)
    assert starts(tmp_path) == (2, False)
    journal(tmp_path, **same, boot_id="before")
    assert starts(tmp_path) == (2, True)
    journal(tmp_path, **same, boot_id="before", attempt=0)  # it was stopped by the user
    assert starts(tmp_path) == (1, False)
    journal(tmp_path, **same, boot_id=None)  # the system does not say
    assert starts(tmp_path) == (2, False)
    journal(tmp_path, trial=5, knobs={"read_threads": 8}, boot_id="before")  # another setting had that number
    assert starts(tmp_path) == (1, False)
    journal(tmp_path, **same, run=1, boot_id="before")
    assert starts(tmp_path) == (1, False)
    assert starts(tmp_path, run=1) == (2, True)
    (tmp_path / "running.json").write_text('{"trial": 5')
    assert starts(tmp_path) == (1, False)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"boot_id": "before the power cut"}, "the machine went down while it ran"),
        ({"attempt": 3}, "the search ended 3 times while it ran; see logs/trial-000000-00.log"),
    ],
)
def test_what_took_the_machine_or_three_searches_down_is_not_tried_again(
    place: Path, cli: Cli, child: Any, request_: dict[str, Any], reason: str
) -> None:
    folder = place / "results" / "demo"
    journal(folder, **request_)
    requests = child(well)
    for _ in range(2):
        assert cli(*QUICK, "budget.trials=1")[0] == 0
    rows = read_rows(folder)
    assert [(r["trial"], r["status"], r["status_reason"]) for r in rows] == [(0, "crash", reason), (1, "ok", None)]
    assert [r["trial"] for r in requests] == [1]
    assert not (folder / "running.json").exists()


def test_ten_failures_of_one_cause_stop_the_night_and_the_same_command_goes_on(place: Path, cli: Cli, child: Any) -> None:
    folder = place / "results" / "demo"
    child(lambda r: Outcome("crash", f"exit status {r['trial']}: /dev/disk{r['trial']} is on fire", wall_s=1.0))
    code, _, err = cli(*QUICK, "budget.trials=30")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("10 runs failed in a row with one cause (crash: exit status N: PATH is on fire); mend it")
    assert [r["status"] for r in read_rows(folder)] == ["crash"] * 10
    assert set(told(folder).values()) == {(TrialState.COMPLETE, 1.0)}
    assert status.main([str(folder)]) == 1
    child(lambda r: Outcome("crash", "a" if r["trial"] % 2 else "b", wall_s=1.0))  # of two causes: it goes on
    assert cli(*QUICK, "budget.trials=12")[0] == 0
    assert len(read_rows(folder)) == 13


def test_memory_that_is_foreseen_costs_no_run(place: Path, cli: Cli, child: Any) -> None:
    """The fake's footprint knows; more than half of the space does not fit."""
    requests = child(well)
    space = ["search_space.cache_gb={type:float,low:0.01,high:0.04}", *(f"~search_space.{n}" for n in ("expert_bits",
             "cold_bits", "hot_share"))]  # fmt: skip
    limits = ["device.memory_gb=0.037", "device.usable_share=1"]
    assert cli(*QUICK, "budget.trials=6", *space, *limits)[0] == 0
    rows = read_rows(place / "results" / "demo")
    foreseen = [r for r in rows if r["status"] == "infeasible"]
    assert len(foreseen) >= 4 and all(r["predicted_peak_gb"] > 0.037 and not r["wall_s"] for r in foreseen)
    assert len(requests) == sum(r["status"] == "ok" for r in rows) == 6  # the budget is of those that ran
    assert {r["trial"] for r in foreseen}.isdisjoint(r["trial"] for r in requests)
    possible = told(place / "results" / "demo")
    assert all(possible[r["trial"]][1] == pytest.approx(r["predicted_peak_gb"] / 0.037 - 1) for r in foreseen)


def test_out_of_memory_is_told_as_complete_and_by_how_much(place: Path, cli: Cli, child: Any) -> None:
    child(lambda r: Outcome("oom", "0.5 GB are above the limit", seen_peak_gb=0.5) if r["trial"] in (3, 4) else well(r))
    assert cli(*QUICK, "budget.trials=5", "device.memory_gb=0.4", "device.usable_share=1")[0] == 0
    found = told(place / "results" / "demo")
    assert {n for n, (_, over) in found.items() if over > 0} == {3, 4}
    assert {state for state, _ in found.values()} == {TrialState.COMPLETE}
    assert found[3][1] == pytest.approx(0.5 / 0.4 - 1)


def test_a_second_search_on_this_machine_is_refused(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    with machine_lock(Path("results/other")):
        code, _, err = cli(*QUICK, "guards.alone=true")
    assert (code, err.count("\n")) == (2, 1)
    assert f"another search runs on this machine (process {os.getpid()}, results/other)" in err


def test_too_little_room_ends_the_search_before_a_run(place: Path, cli: Cli, child: Any) -> None:
    requests = child(well)
    code, _, err = cli(*QUICK, "guards.min_disk_gb=1e9")
    assert (code, err.count("\n"), requests) == (2, 1, [])
    assert "below guards.min_disk_gb=1e+09; nothing is lost: make room" in err
    assert status.main([str(place / "results" / "demo")]) == 1


@pytest.mark.parametrize("where", ["write_row", "refresh"])
def test_a_full_disk_is_one_line_and_nothing_is_lost_or_doubled(
    place: Path, cli: Cli, child: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    requests, folder = child(well), place / "results" / "demo"
    with monkeypatch.context() as m:

        def full(*args: Any, **more: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        m.setattr(loop, where, full)
        code, _, err = cli(*QUICK, "budget.trials=2")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"{folder} cannot be used (No space left on device); make room")
    assert cli(*QUICK, "budget.trials=2")[0] == 0
    assert [(r["trial"], r["status"]) for r in read_rows(folder)] == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert [r["trial"] for r in requests] == ([0, 0, 1, 2] if where == "write_row" else [0, 1, 2])
    assert not (folder / "running.json").exists()


def test_a_child_that_finds_the_disk_full_is_no_crash(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback ...\nOSError: [Errno 28] No space left on device: 'result.tmp'\n")
    with pytest.raises(ResultsError, match=r"No space left .*; make room"):
        _fate({}, 1, log, [])
    log.write_text("OSError: [Errno 5] Input/output error\n")
    assert _fate({}, 1, log, []) == ("crash", "exit status 1: OSError: [Errno 5] Input/output error")


def test_ctrl_c_while_the_report_is_drawn_is_no_traceback(
    place: Path, cli: Cli, child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawing(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    child(well)
    monkeypatch.setattr("harness.report.report", drawing)
    code, _, err = cli(*QUICK, "budget.trials=1")
    assert (code, err) == (130, "stopped; all rows are on the disk, and the same command goes on\n")
    assert len(read_rows(place / "results" / "demo")) == 2


def test_status_and_log_through_a_night(place: Path, cli: Cli, child: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A real search, killed; then stopped, then finished without a child."""
    folder, log = place / "results" / "demo", place / "results" / "demo" / "logs" / "search.log"
    (place / "checkpoint" / "slow_s").write_text("60")
    process = spawn(place)
    while not (place / "checkpoint" / "runs.log").exists():
        time.sleep(0.05)
    assert status.main([str(folder)]) == 0
    assert "exploring: trial 0 (reference)" in capsys.readouterr().out
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert status.main([str(folder)]) == 1
    assert f"its process {process.pid} is gone" in " ".join(capsys.readouterr().out.split())

    def stopped(request: dict[str, Any]) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted

    child(stopped)
    assert cli(*QUICK, "budget.trials=2")[0] == 130
    assert status.main([str(folder)]) == 3
    assert read_rows(folder) == [] and json.loads((folder / "running.json").read_text())["attempt"] == 1
    child(well)
    assert cli(*QUICK, "budget.trials=2")[0] == 0
    assert status.main([str(folder)]) == 0
    assert [r["attempt"] for r in read_rows(folder)] == [2, 1, 1]
    text = log.read_text()
    assert "trial 000000-00 runs in process" in text and "stopped with 0 rows" in text and "finished with 3 rows" in text
