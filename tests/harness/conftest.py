"""Fixtures of the search: a prepared results folder, the command in this process, and a session without child processes."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from read_once import read_once
from sqlalchemy import event
from sqlalchemy.engine import Engine as Database
from support import HERE, ROOT, Cli, arguments, prepare

from engine import Judge, Knobs
from harness.forecast.study.fit import Figures
from harness.results.rows import read_trials
from harness.run import runner
from harness.run.children import Children
from harness.run.supervise import Outcome
from harness.study.engines import engine_at

PLOTS = ("plot_front", "plot_session")  # drawing takes longer than the study; show/test_plot.py draws them
SPACE = (
    "~search_space.prefetch", "~search_space.prefetch_depth", "~search_space.read_block_kib", "~search_space.io_mode",
    "~search_space.cold_bits", "~search_space.hot_share", "~knobs.ssd_gbps",
)  # fmt: skip
Alter = Callable[[dict[str, Any], int], dict[str, Any]]
Requests = list[dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def _read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        read_once(patch)
        yield


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files and databases of this process are not forced to the disk, which takes longer than most studies. A killed process
    loses nothing by this, and no test cuts the power; engine/system/test_atomic.py tests the order of the calls."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    event.listen(Database, "connect", _without_sync)
    yield
    event.remove(Database, "connect", _without_sync)


def _without_sync(connection: Any, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared working folder; the fake engine can be imported in this process and in children."""
    prepare(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `python -m harness.search OVERRIDES` in this process: (exit status, stdout, stderr)."""
    from harness import search

    # They compose the study once more; rounds/test_repeat.py tests them.
    monkeypatch.setattr("harness.rounds.repeat._corrections", lambda path, overrides: [])

    def run(*overrides: str, plots: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["search", *arguments(place, *overrides)])
        monkeypatch.setattr(search, "_status", 0)
        monkeypatch.setattr(
            "harness.forecast.study.forecaster.probe", lambda *_: Figures(20.0, 0.25, 0.0, 0.0, 1.0, 0.1)
        )  # it takes seconds
        # Hydra composes the study once more only to read its mode, which the flag -m sets as well; `spawn` leaves that in.
        monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        monkeypatch.setattr("harness.forecast.study.candidates.MOST", 4)  # a replay takes up to half a second
        monkeypatch.setattr("harness.run.children.MOST", 1)  # a short study does not use more
        for plot in () if plots else PLOTS:
            monkeypatch.setattr(f"harness.show.report.{plot}", lambda df, path: path)
        if not plots:
            monkeypatch.setattr("harness.show.report.write_page", lambda summary: summary.folder / "report.html")
        capsys.readouterr()
        status = search.main()
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Alter], None]:
    """Measure in this process instead of a child; the argument changes the figures of the n-th run."""

    def replace(alter: Alter) -> None:
        made = iter(range(10_000))

        def direct(children: Children, log: Path, **_: Any) -> Outcome:
            asked = json.loads(children.request.read_text())
            engine = engine_at(asked["engine"]).load(asked["checkpoint"], Knobs.from_mapping(asked["knobs"]))
            figures = engine.measure(Judge.load(asked["judge"])).as_dict()
            if not asked["protocol"]["score"]:
                figures |= dict.fromkeys(("perplexity", "perplexity_se", "nll", "scored_tokens"))
            figures = alter(figures, next(made))
            if "status" in figures:
                return Outcome(figures["status"], figures["reason"], wall_s=0.5)
            return Outcome("ok", None, figures, seen_peak_gb=figures["peak_memory_gb"], wall_s=1.0, score_s=0.4)

        monkeypatch.setattr(runner, "run_child", direct)
        monkeypatch.setattr(Children, "prepare", lambda self, knobs=None: None)

    return replace


@pytest.fixture
def direct(cli: Cli, in_process: Callable[[Alter], None]) -> Cli:
    """`cli`, but with the runs in this process."""
    in_process(lambda figures, n: figures)
    return cli


@pytest.fixture
def session(
    place: Path, cli: Cli, in_process: Callable[[Alter], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pd.DataFrame]:
    """Run a study of the fake engine in this process; `alter` changes the figures of the n-th run. Returns its rows.
    Only with `plots` the report is printed and drawn."""

    def run(
        *overrides: str, alter: Alter = lambda figures, n: figures, status: int = 0, rows: bool = True, plots: bool = False
    ) -> pd.DataFrame:
        in_process(alter)
        if not plots:  # the report has tests of its own
            monkeypatch.setattr("harness.show.report.report", lambda *args, **more: None)
        assert cli(*SPACE, *overrides, plots=plots)[0] == status
        return read_trials(place / "results" / "demo") if rows else pd.DataFrame()

    return run


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any]], Outcome]], Requests]:
    """Replace the child by a function from request to outcome, and the report by nothing. Returns the list of requests."""
    monkeypatch.setattr("harness.show.report.report", lambda *args, **more: None)  # it draws

    def put(answer: Callable[[dict[str, Any]], Outcome]) -> Requests:
        requests: Requests = []

        def run_child(children: Children, log: Path, **rest: Any) -> Outcome:
            requests.append(json.loads(children.request.read_text()))
            return answer(requests[-1])

        monkeypatch.setattr(runner, "run_child", run_child)
        monkeypatch.setattr(Children, "prepare", lambda self, knobs=None: None)
        return requests

    return put
