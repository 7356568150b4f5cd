"""Record of the run in flight: it distinguishes a search that ended from a machine that went down."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import QUICK, Cli

from harness.machine.identity import boot_id
from harness.propose.ask_tell import Proposal
from harness.results.rows import read_rows
from harness.run.in_flight import InFlight, Start
from harness.run.job import Job
from harness.run.supervise import Outcome


def record(folder: Path, **request: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"trial": 0, "run": 0, "attempt": 1, "boot_id": boot_id(), "knobs": {}, **request}
    (folder / "running.json").write_text(json.dumps(whole))


def start(folder: Path, run: int = 0) -> Start:
    return InFlight(folder).start(Job(Proposal(5, "sampler", {"read_threads": 4}), run))


def test_a_lost_search_is_distinguished_from_a_lost_machine(tmp_path: Path) -> None:
    same = {"trial": 5, "knobs": {"read_threads": 4}}
    assert start(tmp_path) == Start(1, False)
    record(tmp_path, **same)
    assert start(tmp_path) == Start(2, False)
    record(tmp_path, **same, boot_id="before")
    assert start(tmp_path) == Start(2, True)
    record(tmp_path, **same, boot_id="before", attempt=0)  # the user stopped it
    assert start(tmp_path) == Start(1, False)
    record(tmp_path, **same, attempt=0, lost_s=5.0)  # it had run for so long
    assert start(tmp_path) == Start(1, False, 5.0)
    record(tmp_path, **same, boot_id=None)  # a system without boot ids
    assert start(tmp_path) == Start(2, False)
    record(tmp_path, trial=5, knobs={"read_threads": 8}, boot_id="before")  # another setting had that number
    assert start(tmp_path) == Start(1, False)
    record(tmp_path, **same, run=1, boot_id="before")
    assert start(tmp_path) == Start(1, False)
    assert start(tmp_path, run=1) == Start(2, True)
    (tmp_path / "running.json").write_text('{"trial": 5')
    assert start(tmp_path) == Start(1, False)


def test_the_record_is_written_taken_back_and_cleared(tmp_path: Path) -> None:
    one = InFlight(tmp_path)
    one.write({"attempt": 2})
    one.write_child(os.getpid())
    assert json.loads((tmp_path / "child.json").read_text())["pid"] == os.getpid()
    one.take_back({"attempt": 2}, 4.0)
    assert json.loads((tmp_path / "running.json").read_text()) == {"attempt": 1, "lost_s": 4.0}
    one.take_back({"attempt": 2, "lost_s": 4.0}, 1.0)
    assert json.loads((tmp_path / "running.json").read_text()) == {"attempt": 1, "lost_s": 5.0}
    one.clear()
    one.clear()
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"boot_id": "before the power cut"}, "the machine went down during the run"),
        ({"attempt": 3}, "the search ended 3 times during the run; see logs/trial-000000-00.log"),
    ],
)
def test_a_run_that_ended_the_machine_or_three_searches_is_not_tried_again(
    place: Path, cli: Cli, child: Any, request_: dict[str, Any], reason: str
) -> None:
    folder = place / "results" / "demo"
    record(folder, **request_)
    figures = {"decode_tok_s": 10.0, "peak_memory_gb": 0.02, "perplexity": 4.0}
    requests = child(lambda request: Outcome("ok", figures=figures, wall_s=1.0))
    for _ in range(2):
        assert cli(*QUICK, "budget.trials=1")[0] == 0
    rows = read_rows(folder)
    assert [(r["trial"], r["status"], r["status_reason"]) for r in rows] == [(0, "crash", reason), (1, "ok", None)]
    assert [r["trial"] for r in requests] == [1]
    assert not (folder / "running.json").exists()
