"""Examination: a check that crashes, hangs or takes the last of the time costs itself alone."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import HeadraceError
from harness.doctor.check import FAILS, WORKS, Answer, Check, Result
from harness.doctor.examine import counts, examine, failures, temporary_folder

WORKER = """
    import os, sys, time
    import harness.doctor.worker as worker
    from harness.doctor.check import Answer, Check

    def crash(place):
        os.kill(os.getpid(), 11)

    def leave(place):
        print("the last word", file=sys.stderr, flush=True)
        os._exit(3)

    def hang(place):
        time.sleep(100)

    def talk(place):
        print("noise on standard output", flush=True)
        return Answer("fine", {"pid": os.getpid()})

    RUN = {"crash": crash, "leave": leave, "hang": hang, "talk": talk}
    worker.checks = lambda: [Check("calls", n, RUN[n]) for n in os.environ["ORDER"].split()]
    sys.exit(worker.main(*sys.argv[1:]))
"""
Examine = Callable[..., list[Result]]


@pytest.fixture
def examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """`examined("talk crash", whole_s=...)`: results of checks by those names, each with a limit of `limit_s`."""
    (tmp_path / "fake_doctor_worker.py").write_text(textwrap.dedent(WORKER))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(order: str, limit_s: float = 20.0, **more: Any) -> list[Result]:
        monkeypatch.setenv("ORDER", order)
        listed = [Check("calls", name, lambda place: Answer("", {}), limit_s=limit_s) for name in order.split()]
        return examine(tmp_path, all_checks=listed, worker=("fake_doctor_worker",), **more)

    return run


def test_what_crashes_fails_and_the_next_check_runs(examined: Examine) -> None:
    results = examined("talk crash talk leave talk")
    assert [r.state for r in results] == [WORKS, FAILS, WORKS, FAILS, WORKS]
    assert results[1].reason == "its process was ended by SIGSEGV: noise on standard output"
    assert results[3].reason == "its process ended with 3: the last word"
    assert len({r.figures["pid"] for r in results if r.state == WORKS}) == 3, "a new process after each crash"
    assert counts(results) == {WORKS: 3, FAILS: 2} and [r.name for r in failures(results)] == ["crash", "leave"]


def test_what_hangs_is_ended_at_its_limit(examined: Examine) -> None:
    begin = time.monotonic()
    results = examined("hang talk", limit_s=2.0)
    assert [r.reason for r in results] == ["no answer within 2 s", ""]
    assert results[0].seconds >= 2 and time.monotonic() - begin < 30


def test_what_does_not_fit_into_the_time_is_named(examined: Examine) -> None:
    told: list[Result] = []
    results = examined("talk hang talk talk", whole_s=3.0, told=told.append)
    assert [r.state for r in results] == [WORKS, FAILS, FAILS, FAILS] and told == results
    assert {r.reason for r in results[1:]} == {"not tried: the 3 s for all checks were over"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as made:
        assert made.parent == tmp_path and made.is_dir()
    assert not made.exists()
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(HeadraceError, match=r"name another folder with --folder$"), temporary_folder(wrong):
            pass
