"""Failures: which reasons count as one cause, and how many runs failed in a row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from harness.analysis.failures import cause, streak

START = datetime(2026, 11, 22, tzinfo=UTC)


def row(status: str, reason: str | None = None, minute: int | None = 0) -> dict[str, Any]:
    started = None if minute is None else START + timedelta(minutes=minute)
    return {"status": status, "status_reason": reason, "started_at": started, "sequence": minute}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("exit status 7: the disk is on fire", "exit status 12: the disk is on fire"),
        ("0.613 GB are above the limit of 0.6 GB", "1.2e+03 GB are above the limit of 0.6 GB"),
        ("/tmp/a/shard-3.safetensors cannot be read", "~/models/b/shard-14.safetensors cannot be read"),
        ("shard 3 of 'deadbeef01'\nReadError: layer 3", "Traceback\nReadError: layer 44"),
        ("fault at 0x7f12ab34  in 1a2b3c4d5e6f", "fault at 0x01 in ffffffff0011"),
    ],
)
def test_one_cause(one: str, other: str) -> None:
    assert cause(row("crash", one)) == cause(row("crash", other))


def test_other_causes() -> None:
    causes = [
        cause(row("crash", "signal SIGSEGV")), cause(row("crash", "signal SIGABRT")), cause(row("crash")),
        cause(row("oom", "killed by the system")), cause(row("timeout", "no result within 6 s (budget.trial_timeout_s)")),
    ]  # fmt: skip
    assert len(set(causes)) == len(causes)
    assert causes[-1] == "timeout: no result within N s (budget.trial_timeout_s)"
    assert causes[2] == "crash"


def test_a_streak_is_of_one_cause_and_of_the_newest() -> None:
    fire = [row("crash", f"exit status {i}: fire", i) for i in range(2, 6)]
    assert streak([]) == (0, "")
    assert streak(fire) == (4, "crash: exit status N: fire")
    assert streak([*fire[2:], row("ok", None, 1), *fire[:2]])[0] == 4  # in the order of the runs, not by place
    late = [r | {"started_at": START - timedelta(days=400)} for r in fire]  # the clock was set back before them
    assert streak([*late, row("ok", None, 1)])[0] == 4
    assert streak([*fire, row("ok", None, 9)]) == (0, "")
    assert streak([*fire, row("stopped", "too slow", 9)]) == (0, "")
    assert streak([*fire, row("oom", "killed", 9)]) == (1, "oom: killed")
    assert streak([row("oom", "killed", 3.5), *fire])[0] == 2  # type: ignore[arg-type]
    not_run = [row("infeasible", "x", 3), row("dominated", "y", 9), row("crash", "of an old version", None)]
    assert streak([*fire, *not_run])[0] == 4


def test_a_streak_of_an_earlier_command_does_not_stop_this_one() -> None:
    fire = [row("crash", "fire", i) for i in range(10)]
    assert streak(fire)[0] == 10
    assert streak(fire, 8)[0] == 2
    assert streak(fire, 60) == (0, "")
