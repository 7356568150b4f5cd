"""Entry of a session without child processes: locks, full disks, Ctrl-C during the report, and the state of a search."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support import QUICK, Cli, spawn, wait_for

from harness import ResultsError, status
from harness.machine.locks import machine_lock, study_lock
from harness.results.rows import read_rows
from harness.run.supervise import Interrupted, Outcome
from harness.session import loop


def well(request: dict[str, Any]) -> Outcome:
    return Outcome("ok", figures={"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}, wall_s=1.0)


def test_a_second_search_is_refused(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    with machine_lock(Path("results/other")):
        code, _, err = cli(*QUICK, "guards.alone=true")
    assert (code, err.count("\n")) == (2, 1)
    assert f"another search runs on this machine (process {os.getpid()}, results/other)" in err
    folder = place / "results" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    with study_lock(folder):
        code, _, err = cli(*QUICK)
    assert (code, err.count("\n")) == (2, 1)
    assert f"in use by another search (process {os.getpid()})" in err


def test_too_little_disk_space_ends_the_search_before_a_run(place: Path, cli: Cli, child: Any) -> None:
    requests = child(well)
    code, _, err = cli(*QUICK, "guards.min_disk_gb=1e9")
    assert (code, err.count("\n"), requests) == (2, 1, [])
    assert "below guards.min_disk_gb=1e+09; all rows are saved: make room" in err
    assert status.main([str(place / "results" / "demo")]) == 1


@pytest.mark.parametrize("where", ["write_row", "refresh"])
def test_a_full_disk_is_one_line_and_loses_or_doubles_no_row(
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


def test_ctrl_c_while_the_report_is_drawn_is_no_traceback(
    place: Path, cli: Cli, child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawing(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    child(well)
    monkeypatch.setattr("harness.show.report.report", drawing)
    code, _, err = cli(*QUICK, "budget.trials=1")
    assert (code, err.count("\n")) == (130, 1)
    assert len(read_rows(place / "results" / "demo")) == 2


def test_status_and_log_of_an_interrupted_search(
    place: Path, cli: Cli, child: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search in a process of its own is killed; the next is stopped, and the last one finishes."""
    folder, log = place / "results" / "demo", place / "results" / "demo" / "logs" / "search.log"
    (place / "checkpoint" / "slow_s").write_text("60")
    process = spawn(place)
    wait_for((place / "checkpoint" / "runs.log").exists, by=process)
    assert status.main([str(folder)]) == 0
    assert "exploring: trial 0 (reference)" in capsys.readouterr().out
    process.kill()
    process.communicate(timeout=60)
    assert status.main([str(folder)]) == 1
    assert str(process.pid) in capsys.readouterr().out

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


def test_the_study_lock_names_its_holder(tmp_path: Path) -> None:
    with study_lock(tmp_path), pytest.raises(ResultsError, match=f"process {os.getpid()}"), study_lock(tmp_path):
        pass
