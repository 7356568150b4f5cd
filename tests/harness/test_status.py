"""The status of a study: what it says, its exit status, and that it leaves the study as it is."""

from __future__ import annotations

import io
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console
from support import Machine

from harness import status
from harness.machine.clocks import awake, continuous
from harness.results.columns import NAMES, SCHEMA_VERSION
from harness.results.writing import write_row
from harness.session.state import read_state, write_state
from harness.show.status import lines, show

STATE = {"phase": "measuring", "round": 2, "trial": 6, "run": 1, "origin": "confirm", "trials_wanted": 12, "trials_done": 5}
Facts = dict[str, Any]


def put(folder: Path, trial: int, state: str = "ok", reason: str | None = None, **more: Any) -> None:
    row = dict.fromkeys(NAMES)
    row.update(
        row_id=uuid4().hex, schema_version=SCHEMA_VERSION, trial=trial, run=0, round=1, status=state, status_reason=reason,
        origin="anchor", attempt=1, wall_s=10.0, started_at=datetime.now(UTC) - timedelta(seconds=100 - trial),
        objectives="decode_tok_s,peak_memory_gb,perplexity", eval_fingerprint="j", study="mill", limit_gb=30.0,
        cache_gb=0.5 + trial,
    )  # fmt: skip
    if state == "ok":
        row.update(decode_tok_s=10.0 + trial, peak_memory_gb=5.0 + trial, perplexity=4.0, hit_rate=0.5, feasible=True)
    row.update(more)
    write_row(folder, row)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of six rows in results/mill: three good ones, two crashes of one cause, one not run."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "mill"
    folder.mkdir(parents=True)
    config = {"study": {"name": "mill"}, "budget": {"trials": 12}, "rounds": 3, "guards": {"min_disk_gb": 2.0}}
    (folder / "manifest.json").write_text(json.dumps({"identity": {}, "config": config}))
    for trial in range(3):
        put(folder, trial)
    put(folder, 3, "infeasible", "cache_gb=9 is above the limit of 8 GB")
    put(folder, 4, "crash", "exit status 7: the disk /dev/a is on fire")
    put(folder, 5, "crash", "exit status 8: the disk /dev/b is on fire", suspect="load: others kept 5.0 of 8 cores busy")
    return folder


def text(facts: Facts, rows: list[Any], width: int) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width), facts, rows)
    return out.getvalue()


def facts(folder: Path, **machine: Any) -> Facts:
    return status.status(folder, Machine(**machine))[0]


def test_a_search_that_runs(study: Path) -> None:
    now = awake()
    write_state(study, **STATE, since_s=now - 17, started_s=now - 120, ended_s=continuous() - 85, hours=8.0)
    found, rows = status.status(study, Machine(load=1.5, temperature_c=61.0, power_source="ac"))
    assert (found["search"], found["exit_status"], found["front"]) == ("runs", 0, 3)
    assert found["now"] | {"for_s": 0} == {
        "phase": "measuring", "trial": 6, "run": 1, "origin": "confirm", "pid": os.getpid(), "for_s": 0,
    }  # fmt: skip
    assert found["progress"]["left_s"] == pytest.approx(10 * 7)  # at 10 s a run, seven to go
    assert found["rows"]["counts"]["not_run"] == {"infeasible": 1}
    assert found["rows"]["last_s_ago"] == pytest.approx(85, abs=2)
    assert found["rows"]["failures"] == {"crash: exit status N: the disk PATH is on fire": 2}
    assert found["rows"]["streak"]["failures"] == 2
    assert found["rows"]["suspect"] == {"load": 1}
    for width in (60, 120):
        page = text(found, rows, width)
        assert max(map(len, page.splitlines())) <= width
        assert "5 of 12 trials, round 2 of 3; 2:00 so far, about 1:10 left" in " ".join(page.split())
        assert "5 trials (3 ok, 2 crash), 1 setting not run (infeasible)" in " ".join(page.split())
        assert "1 run: 1 with foreign load during the run" in " ".join(page.split())
        assert "measuring: trial 6, run 1 (confirm), for 0:17" in page
        assert "2 crash: exit status N" in page
        assert "front of 3, best first" in page
        assert "61 °C" in page and "foreign load on 1.5 of 8 cores" in page
    assert json.loads(json.dumps(found)) == found


def test_where_the_time_went(study: Path) -> None:
    found, rows = status.status(study)
    assert found["time"]["not_recorded_runs"] == 6 and "is not recorded by part" in " ".join(text(found, rows, 60).split())
    times = {"session": "a", "between_s": 1.0, "timed_s": 4.0, "cool_down_s": 0.5}
    put(study, 6, session_s=11.5, **times)
    put(study, 7, session_s=23.0, **times | {"origin": "confirm"})
    write_state(study, **STATE, session="a", session_s=25.0)
    found, rows = status.status(study)
    assert found["time"]["parts_s"]["timing"] == 8.0 and found["time"]["confirmation_s"] == 11.5
    assert found["time"]["clock_s"] == found["time"]["sum_s"] == 25.0
    for width in (60, 120):
        page = text(found, rows, width)
        assert max(map(len, page.splitlines())) <= width
        assert "clock of the search" in page and "cooling down" in page
    assert json.loads(json.dumps(found)) == found


def test_no_time_depends_on_the_wall_clock(study: Path) -> None:
    """Rows from the future, and a state of this machine: the time since the last run is that of a clock that never jumps.
    Without such a state, the page names the time by the clock of the rows' machine."""
    put(study, 6, started_at=datetime.now(UTC) + timedelta(days=366), sequence=9)
    write_state(study, **STATE, since_s=awake() + 50, started_s=awake() + 50, ended_s=continuous() + 50)
    found = facts(study)
    assert (found["now"]["for_s"], found["progress"]["elapsed_s"], found["rows"]["last_s_ago"]) == (0, 0, 0)
    (study / "state.json").unlink()
    found = facts(study)
    assert found["rows"]["last_s_ago"] is None
    year = (datetime.now(UTC) + timedelta(days=366)).year
    assert f"at {year}-" in dict(lines(found))["rows"] and "by its machine's clock" in dict(lines(found))["rows"]


def test_hours_bound_what_is_left(study: Path) -> None:
    write_state(study, **STATE, started_s=awake() - 120, hours=150 / 3600)
    assert facts(study)["progress"]["left_s"] == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("phase", "fate", "code"), [("finished", "finished", 0), ("stopped", "stopped", 3), ("failed", "failed", 1)]
)
def test_how_a_search_ended(study: Path, phase: str, fate: str, code: int) -> None:
    write_state(study, phase=phase, message="ten crashes in a row")
    found = facts(study)
    assert (found["search"], found["exit_status"], found["now"]) == (fate, code, None)
    assert "ten crashes in a row" in dict(lines(found))["search"]


def test_a_search_that_was_killed(study: Path) -> None:
    """The state names a running search, but its process is gone, another process has its number, or the machine rebooted."""
    write_state(study, **STATE)
    path = study / "state.json"
    mine = json.loads(path.read_text())
    child = subprocess.Popen(["true"])
    child.wait()
    for other in ({"pid": child.pid}, {"created": mine["created"] - 1}, {"boot_id": "another"}):
        path.write_text(json.dumps(mine | other))
        found = facts(study)
        assert (found["search"], found["exit_status"], found["progress"]["left_s"]) == ("gone", 1, None)
        head = dict(lines(found))["search"]
        assert head.startswith("CRASHED: process ") and "the same command resumes it" in head
        assert ("has rebooted" in head) == ("boot_id" in other)


def test_damaged_and_absent_files_are_a_line_each(study: Path) -> None:
    found = facts(study)  # no state.json: rows of a search that ended before there was one
    assert (found["search"], found["exit_status"], found["problems"]) == ("unknown", 3, [])
    for content in ('{"pid": 1', "[]", "{}"):
        (study / "state.json").write_text(content)
        found = facts(study)
        assert found["search"] == "unknown"
        assert found["progress"]["trials_done"] == 5
        assert len(found["problems"]) == (content != "{}")
        assert found["exit_status"] == (3 if content == "{}" else 1)
    (study / "manifest.json").write_text("{")
    (study / "trials" / "part-000009.parquet").write_bytes(b"PAR1")
    found, rows = status.status(study, Machine())
    assert [p.partition(" is ")[0].rpartition("/")[2] for p in found["problems"]] == ["part-000009.parquet", "manifest.json"]
    assert "damaged" in text(found, rows, 60)


def test_a_study_whose_budget_is_spent_needs_no_state(study: Path) -> None:
    for trial in range(6, 13):
        assert facts(study)["search"] == "unknown"
        put(study, trial)
    assert (facts(study)["search"], facts(study)["exit_status"]) == ("finished", 0)


def test_a_study_that_has_no_row_yet(tmp_path: Path) -> None:
    write_state(tmp_path, phase="measuring", trial=0, run=0, origin="reference", started_s=awake())
    found, rows = status.status(tmp_path, Machine())
    assert (found["search"], found["front"], found["rows"]["last_s_ago"]) == ("runs", 0, None)
    assert "none yet" in text(found, rows, 60)


def test_health_names_what_is_wrong(study: Path) -> None:
    shown = dict(lines(facts(study, free_disk_gb=1.5, available_gb=1.0, load=7.0, thermal_state="serious")))
    assert shown["disk"] == "1.5 GB free, BELOW guards.min_disk_gb=2"
    assert shown["not quiet"] == "thermal state serious"
    assert shown["heat"] == "serious"
    put(study, 6, origin="sentinel", drift=1.02)
    put(study, 7, origin="sentinel", drift=0.8, drift_since=datetime.now(UTC))
    assert dict(lines(facts(study)))["sentinel"] == "2 runs, 1 drifted, the last at 0.80 of the earlier median"


def test_the_command_line(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(status, "Meters", lambda *roots: Machine())
    write_state(study, phase="finished")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in study.rglob("*") if p.is_file()}
    assert status.main(["mill"]) == 0
    assert capsys.readouterr().out.startswith("mill")
    assert status.main([str(study), "mill", "--json"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [d["search"] for d in documents] == ["finished", "finished"]
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in study.rglob("*") if p.is_file()} == before

    assert status.main(["mlil"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "mlil is neither" in err and "did you mean mill?" in err
    with pytest.raises(SystemExit) as usage:
        status.main(["mill", "--watch", "-1"])
    assert usage.value.code == 2
    with pytest.raises(SystemExit) as usage:
        status.main(["--help"])
    assert usage.value.code == 0
    assert "Exit status" in capsys.readouterr().out


def test_ctrl_c_while_watching_is_130(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "Meters", lambda *roots: Machine())
    write_state(study, **STATE)

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", stop)
    assert status.main(["mill", "--watch", "5"]) == 130


def test_confirmation_is_in_the_progress(study: Path) -> None:
    """The state has the phase of confirmation, the rows have the number of its runs."""
    (study / "manifest.json").write_text(json.dumps({"config": {"budget": {"trials": 5}, "confirm": {"share": 0.6}}}))
    write_state(study, **STATE | {"trials_wanted": 5, "confirm_round": 1, "confirm_done": 0, "confirm_most": 3})
    for run in (1, 2):
        put(study, 2, run=run, origin="confirm")
    found = facts(study)
    p = found["progress"]
    assert (p["trials_done"], p["confirm_done"], p["confirm_most"], p["runs_left"]) == (5, 2, 3, 1)
    assert p["left_s"] is None  # the state has no start time
    assert dict(lines(found))["progress"].startswith("5 of 5 trials, confirming 2 of at most 3, round 2")
    assert "2 confirmations" in dict(lines(found))["rows"]


def test_the_gravest_exit_status_and_watching_until_the_end(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "Meters", lambda *roots: Machine())
    other = study.with_name("other")
    other.mkdir()
    write_state(study, phase="failed")
    write_state(other, **STATE)
    assert status.main(["other", "mill"]) == 1
    looks = iter(["measuring", "stopped"])
    monkeypatch.setattr(status.time, "sleep", lambda s: write_state(other, phase=next(looks)))
    assert status.main(["other", "--watch", "5", "--json"]) == 3
    assert capsys.readouterr().out.count('"search": "runs"') == 2


def test_a_full_disk_does_not_end_the_search_for_its_state(tmp_path: Path) -> None:
    write_state(tmp_path, phase="measuring")
    first = read_state(tmp_path)
    (tmp_path / ".state.json.tmp").mkdir()  # nothing can be written there
    write_state(tmp_path, phase="finished")
    assert read_state(tmp_path) == first
    assert read_state(tmp_path / "nowhere") is None
