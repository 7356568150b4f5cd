"""Status page: facts of rows and progress, and their text (`tests/harness/test_status.py` has whole studies)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stored import row
from support import Machine

from harness.schema import GuardsConfig
from harness.show.status import current_run, health, lines, progress_facts, row_facts

START = datetime(2026, 1, 1, tzinfo=UTC)


def rows() -> list[dict[str, Any]]:
    """A reference, two trials, two crashes in a row; one run a minute of 30 s each."""
    origins = ["reference", "anchor", "sampler", "sampler", "sampler"]
    some = [row(i, origin=o, wall_s=30.0, started_at=START + timedelta(minutes=i)) for i, o in enumerate(origins)]
    some[3] |= {"status": "crash", "status_reason": "exit status 7"}
    some[4] |= {"status": "crash", "status_reason": "exit status 9", "suspect": "load: others"}
    return some


def test_facts_of_rows() -> None:
    found = row_facts(rows(), 30.0, 0)
    cause = "crash: exit status N"
    assert found["failures"] == {cause: 2} and found["streak"] == {"failures": 2, "cause": cause}
    assert (found["last_s_ago"], found["suspect"], found["sentinels"]) == (30.0, {"load": 1}, 0)


def test_progress_is_that_of_the_rows_where_they_are_ahead() -> None:
    config = {"budget": {"trials": 10, "hours": 1.0}, "rounds": 2}
    found = progress_facts({"trials_done": 1, "started_s": 500.0}, rows(), config, 3500.0, True)
    assert (found["trials_done"], found["trials_wanted"], found["rounds"], found["elapsed_s"]) == (4, 10, 2, 3000)
    assert found["left_s"] <= 600
    assert progress_facts({}, rows(), config, 3500.0, False)["left_s"] is None


def test_lines_leave_out_what_is_unknown() -> None:
    facts = {
        "search": "gone", "message": "process 9 is gone", "problems": ["a file is damaged"], "now": None,
        "progress": progress_facts({}, rows(), {"budget": {"trials": 10}}, 300.0, False),
        "rows": row_facts(rows(), None, 0), "health": health(Path(__file__).parent, GuardsConfig(), Machine(load=1.5)),
    }  # fmt: skip
    shown = dict(lines(facts))
    assert shown["search"] == "CRASHED: process 9 is gone" and shown["problem"] == "a file is damaged"
    assert shown["progress"] == "4 of 10 trials" and shown["streak"] == "the last 2 runs failed with the same cause"
    assert shown["load"] == "foreign load on 1.5 of 8 cores"
    assert not {"heat", "power", "sentinel", "now"} & shown.keys()


@pytest.mark.parametrize("since", [None, 100.0])
def test_the_current_run(since: float | None) -> None:
    found = current_run({"phase": "measuring", "trial": 4, "since_s": since}, 117.0)
    assert (found["phase"], found["trial"], found["run"]) == ("measuring", 4, None)
    assert found["for_s"] == (None if since is None else 17.0)
