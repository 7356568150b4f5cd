"""Ends of a run, each in a real child process: the row states it, and the sampler receives it as infeasible."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState
from support import HERE, Cli, arguments, prepare

from engine import CheckpointError
from engine.errors import foreseeable
from harness import ResultsError, search
from harness.analysis.runs.hours import hours, parts
from harness.machine import clocks
from harness.results.metrics import OBJECTIVES
from harness.results.rows import read_trials
from harness.run import children
from harness.run.supervise import Outcome, fate, parts_of, run_child

Study = tuple[pd.DataFrame, dict[int, FrozenTrial]]
FATES = {  # fault: (status, reason)
    "crash": ("crash", "signal SIGSEGV"),
    "exit": ("crash", "exit status 7: the disk is on fire"),
    "error": ("crash", "shard 3 cannot be read; copy it again"),
    "knob": ("infeasible", "40 columns are no multiple of 32"),
    "kill": ("oom", "killed by the system (SIGKILL)"),
    "malloc": ("oom", "RuntimeError: [malloc] Unable to allocate 9000000000 bytes; memory is exhausted; lower cache_gb"),
    "hang": ("timeout", "no result within 6 s (budget.trial_timeout_s)"),
    "burst": ("oom", "are above the limit of 0.6 GB"),
}
THREADS = {kind: 20 + i for i, kind in enumerate(FATES)}  # the value of read_threads that causes the fault


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A study in this process that meets every fault, each in a child: its rows and Optuna's trials."""
    place = prepare(tmp_path_factory.mktemp("fates"))
    (place / "checkpoint" / "faults.json").write_text(json.dumps({n: kind for kind, n in THREADS.items()}))
    anchors = ",".join(f"{{cache_gb:0.01,read_threads:{n}}}" for n in THREADS.values())
    limits = ("budget.trial_timeout_s=6", "device.memory_gb=0.6", "device.usable_share=1")
    space = ("~search_space.expert_bits", "~search_space.cold_bits", "~search_space.hot_share",
             "search_space.read_threads.high=99")  # fmt: skip
    overrides = (f"study.anchors=[{anchors}]", f"budget.trials={2 + len(FATES)}", *limits, *space)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", str(HERE))
        patch.chdir(place)
        patch.setattr(sys, "argv", ["search", *arguments(place, *overrides)])
        patch.setattr(search, "_status", 0)
        patch.setattr("harness.show.report.report", lambda *args, **more: None)
        assert search.main() == 0
        folder = place / "results" / "demo"
        stored = optuna.load_study(study_name="demo", storage=f"sqlite:///{folder / 'study.db'}").get_trials()
        yield read_trials(folder), {t.user_attrs["trial"]: t for t in stored if "trial" in t.user_attrs}


@pytest.mark.parametrize("kind", FATES)
def test_fate(study: Study, kind: str) -> None:
    df, stored = study
    expected, reason = FATES[kind]
    row = df[df["read_threads"] == THREADS[kind]].iloc[0]
    assert row["status"] == expected
    assert reason in row["status_reason"]
    assert "\n" not in row["status_reason"]
    assert row[list(OBJECTIVES)].isna().all()
    assert (row["cache_gb"], row["origin"]) == (0.01, "anchor")
    if kind in ("hang", "burst") or pd.notna(row["seen_peak_gb"]):  # the others may end before the first look
        assert row["seen_peak_gb"] > (0.6 if kind == "burst" else 0.01)
    trial = stored[row["trial"]]
    assert trial.state == TrialState.COMPLETE
    assert trial.constraints["possible"] > 0
    before = df[(df["status"] == "ok") & (df["trial"] < row["trial"])]
    assert trial.values == [before["decode_tok_s"].min(), before["peak_memory_gb"].max(), before["perplexity"].max()]


def test_the_others_are_not_affected(study: Study) -> None:
    df, stored = study
    assert df["trial"].tolist() == list(range(4 + len(FATES)))  # the infeasible setting does not count
    fine = df[~df["read_threads"].isin(THREADS.values())]
    assert (fine["status"] == "ok").all() and len(fine) >= 3
    assert all(stored[n].constraints["possible"] < 0 for n in fine["trial"] if n in stored)


def test_the_time_of_all_runs_is_the_clock_of_the_search(study: Study) -> None:
    """Real processes that end in every way: the sum of all parts is within 0.5 s and 2 % of the clock."""
    df, _ = study
    rows = df.to_dict("records")
    found = hours(rows)
    assert found.agrees and found.sessions == 1 and found.clock_s == df["session_s"].max()
    assert found.of("lost to failures") == pytest.approx(df.loc[df["read_threads"].isin(THREADS.values()), "wall_s"].sum())
    for row in rows:
        inside = parts(row)
        assert all(seconds >= 0 for seconds in inside.values()), inside
        if row["status"] == "ok":
            assert 0 < row["start_s"] < row["wall_s"] and row["end_s"] > 0 and row["load_s"] > 0
            assert inside["not attributed"] < 0.5 * row["wall_s"]


def test_parts_of_an_answer() -> None:
    answer = {"began_s": 102.0, "ended_s": 107.5, "prepare_s": 0.5, "load_s": 2.0}
    assert parts_of(answer, 100.0, 108.0) == {"start_s": 2.0, "prepare_s": 0.5, "load_s": 2.0, "end_s": 0.5}
    assert set(parts_of({}, 100.0, 108.0).values()) == {None}


def test_a_setting_that_cannot_fit_is_predicted_and_not_run(place: Path, cli: Cli, in_process: Any) -> None:
    in_process(lambda figures, n: figures)
    limits = ("device.memory_gb=0.08", "device.usable_share=1", "search_space.cache_gb.high=0.075")
    status, out, _ = cli("budget.trials=3", *limits)
    assert status == 0
    df = read_trials(place / "results" / "demo")
    ran = df[df["status"] != "infeasible"]
    assert len(ran) == 3
    assert "no reference: with everything resident it would take 0.1 GB, above the limit of 0.08 GB" in out
    assert (ran["status"] == "ok").all()
    predicted = df[df["status"] == "infeasible"]
    assert len(predicted) and predicted["status_reason"].str.contains("above the limit of 0.08 GB").all()
    assert predicted["wall_s"].eq(0).all() and predicted["saved_s"].notna().any()
    assert len((place / "checkpoint" / "runs.log").read_text().splitlines()) == 3


def test_a_full_disk_is_no_crash(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback ...\nOSError: [Errno 28] No space left on device: 'result.tmp'\n")
    with pytest.raises(ResultsError, match=r"No space left .*; make room"):
        fate({}, 1, log, [])
    log.write_text("OSError: [Errno 5] Input/output error\n")
    assert fate({}, 1, log, []) == ("crash", f"exit status 1: OSError: [Errno 5] {os.strerror(5)}")
    full = {"error": "OSError", "reason": foreseeable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"))}
    with pytest.raises(
        ResultsError, match=r"^/x: No space left .*; make room on its disk, then run the same command again$"
    ):
        fate(full, 0, log, [])
    assert fate({"figures": {"decode_tok_s": None}}, 0, log, ["decode_tok_s"]) == ("crash", "decode_tok_s is missing")


BEATING = """
import json, os, sys, time
request, result = sys.argv[1:3]
beat = os.path.join(os.path.dirname(request), "beat")
for n in range(int(os.environ["BEATS"])):
    with open(beat, "w") as f:
        f.write(str(n))
    os.utime(beat, eval(os.environ["TIMES"])(n))
    time.sleep(0.1)
if os.environ["ENDS"] == "no":
    time.sleep(60)
json.dump({"figures": {"decode_tok_s": 5.0}}, open(result, "w"))
"""
TIMES = {  # of the file, as the server of a share keeps them
    "now": "lambda n: None",
    "two hours slow, in steps of two seconds": "lambda n: ((time.time() - 7200) // 2 * 2,) * 2",
    "set back at each": "lambda n: (2e9 - 3600 * n,) * 2",
    "none": "lambda n: (0, 0)",
}


@pytest.fixture
def beating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Supervise a child that beats ten times a second and then ends or hangs; returns the outcome."""
    popen = children.subprocess.Popen

    def start(command: list[str], **more: Any) -> Any:
        return popen([sys.executable, "-c", BEATING, *command[-3:]], **more)

    monkeypatch.setattr(children.subprocess, "Popen", start)
    monkeypatch.setattr(children.Children, "prepare", lambda self: None)

    def run(times: str, beats: int = 15, ends: bool = True, **more: Any) -> Outcome:
        monkeypatch.setenv("TIMES", TIMES[times])
        monkeypatch.setenv("BEATS", str(beats))
        monkeypatch.setenv("ENDS", "yes" if ends else "no")
        given = {"timeout_s": 60, "hang_s": 1.0, "limit_gb": 9, "needed": ["decode_tok_s"], "interrupted": lambda: False,
                 "started": lambda pid: None, **more}  # fmt: skip
        (tmp_path / "running.json").write_text("{}")
        return run_child(children.Children(tmp_path / "running.json"), tmp_path / "logs" / "log", **given)

    return run


@pytest.mark.parametrize("times", TIMES)
def test_a_run_that_gives_signs_is_no_hang_whatever_the_clocks_say(
    beating: Any, monkeypatch: pytest.MonkeyPatch, times: str
) -> None:
    real, jumps = time.time, itertools.cycle([-366 * 86400, 3600, 0, -3600, 366 * 86400])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    outcome = beating(times)
    assert (outcome.status, outcome.reason) == ("ok", None)
    assert 1.5 <= outcome.wall_s < 30 and outcome.slept_s == 0
    silent = beating(times, beats=2, ends=False)
    assert (silent.status, silent.reason) == ("hang", "no sign of life for 1 s (budget.hang_s)")


def test_the_time_limit_begins_anew_if_kernels_were_compiled(
    tmp_path: Path, beating: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "kernels"))
    (tmp_path / "kernels").mkdir()
    assert beating("now", beats=60, timeout_s=2).status == "timeout"
    ticks = itertools.count()
    outcome = beating(
        "now", beats=40, timeout_s=2, tick=lambda: (tmp_path / "kernels" / f"{next(ticks)}.ptx").write_text("x")
    )
    assert outcome.status == "ok" and outcome.wall_s > 4


def test_the_next_child_starts_when_timing_has_ended_and_not_before(
    tmp_path: Path, beating: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run beats for 1.5 s, and reports the end of its timing in between."""
    starts: list[bool] = []
    untimed: list[int] = []
    timed, ticks = tmp_path / "timed", itertools.count()
    timed.touch()  # of an earlier run
    monkeypatch.setattr(children.Children, "prepare", lambda self: starts.append(timed.exists()))

    def tick() -> None:
        if next(ticks) == 5:
            assert not starts
            timed.touch()

    assert beating("now", tick=tick, untimed=lambda: untimed.append(len(starts))).status == "ok"
    assert untimed == [1]
    assert starts == [True, True]  # once during scoring; at the end of the run nothing is left to do


def test_sleep_is_no_time_of_a_run(beating: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine sleeps for an hour in the middle: one clock stands still, or (a paused virtual machine) both go on."""
    for both in (False, True):
        real, ticks = (clocks.awake, clocks.continuous), [0]
        slept = {"s": 0.0}

        def tick(ticks: list[int] = ticks, slept: dict[str, float] = slept) -> None:
            ticks[0] += 1
            slept["s"] = 3600.0 if ticks[0] > 3 else 0.0

        with monkeypatch.context() as patch:
            patch.setattr(clocks, "awake", lambda real=real, slept=slept, both=both: real[0]() + slept["s"] * both)
            patch.setattr(clocks, "continuous", lambda real=real, slept=slept: real[1]() + slept["s"])
            outcome = beating("now", tick=tick)
        assert outcome.status == "ok"
        assert outcome.wall_s < 60 and outcome.slept_s == pytest.approx(3600, abs=11)


WATCH = """
import os, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "mlx.core" and not os.path.exists("OUT"):
            open("OUT", "w").write(repr({k: v for k, v in os.environ.items() if k.startswith("MLX_")}))
sys.meta_path.insert(0, Finder())
"""


def test_the_child_has_the_variables_of_its_knobs_before_it_imports_mlx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER", "MLX_METAL_FAST_SYNCH"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "seen"
    (tmp_path / "sitecustomize.py").write_text(WATCH.replace("OUT", str(out)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = tmp_path / "request.json"
    knobs = {"mlx_ops_per_buffer": 20, "mlx_mb_per_buffer": None, "mlx_fast_synch": True}
    request.write_text(
        json.dumps({"checkpoint": str(tmp_path / "none"), "judge": "none", "knobs": knobs, "engine": "engine"})
    )
    with contextlib.suppress(CheckpointError), contextlib.closing(children.Children(request, "engine")) as ahead:
        ahead.prepare()  # without these variables, so it does not serve
        ahead.prepare(knobs)
        run_child(
            ahead, tmp_path / "logs" / "log", timeout_s=60, hang_s=None, limit_gb=10, needed=[],
            interrupted=lambda: False, started=lambda pid: None,
        )  # fmt: skip
    assert out.exists(), (tmp_path / "logs" / "log").read_text()
    assert out.read_text() == repr({"MLX_MAX_OPS_PER_BUFFER": "20", "MLX_METAL_FAST_SYNCH": "1"})
