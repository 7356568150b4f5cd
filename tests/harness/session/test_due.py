"""Schedule: which run is due, from rows alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Knobs
from harness import StudyStopped
from harness.results.columns import NAMES
from harness.results.history import History
from harness.session.due import (
    confirmation,
    has_reference,
    refuse_hopeless_space,
    rerun,
    rerun_due,
    round_end_s,
    suspects_due,
    trials_due,
)

START = datetime(2026, 11, 22, tzinfo=UTC)


def row(trial: int, run: int = 0, origin: str = "sampler", minute: int = 0, **more: Any) -> dict[str, Any]:
    figures = {"decode_tok_s": 10.0, "peak_memory_gb": 1.0, "perplexity": 4.0, "wall_s": 1.0, "machine": "m"}
    started_at = START + timedelta(minutes=minute)
    given = {"trial": trial, "run": run, "origin": origin, "status": "ok", "round": 1, "started_at": started_at}
    return {**dict.fromkeys(NAMES), **Knobs(cache_gb=1.0).as_dict(), **given, **figures, **more}


def plan(repeats: int = 1, every: int = 0, trials: int = 10, rounds: int = 1) -> Any:
    config = {"protocol": {"repeats": repeats}, "sentinel": {"every": every}}
    return SimpleNamespace(config=config, trials=trials, rounds=rounds)


def due(study: Any, *rows: dict[str, Any]) -> tuple[int, int, str] | None:
    job = rerun_due(study, History(rows), 1)
    return None if job is None else (job.proposal.trial, job.run, job.origin)


def test_a_good_new_trial_is_repeated() -> None:
    assert due(plan(repeats=3), row(1)) == (1, 1, "repeat")
    assert due(plan(repeats=3), row(1), row(1, 1, "repeat", 1)) == (1, 2, "repeat")
    assert due(plan(repeats=2), row(1), row(1, 1, "repeat", 1)) is None
    assert due(plan(repeats=2), row(1), row(2, minute=1, status="crash")) is None
    assert due(plan()) is None


def test_a_control_run_is_due_every_so_many_runs() -> None:
    anchor = row(1, origin="anchor")
    others = [row(n, minute=n) for n in (2, 3)]
    assert due(plan(every=3), anchor, *others) is None
    assert due(plan(every=2), anchor, *others) == (1, 1, "sentinel")
    assert due(plan(every=2), *others) is None  # without an anchor there is no control run


def test_suspect_runs_are_repeated_within_a_budget() -> None:
    doubtful = [row(n, minute=n, suspect="load") for n in range(1, 5)]
    assert due(plan(), row(9), *doubtful) == (1, 1, "again")
    assert suspects_due(History(doubtful), 10) == [1, 2, 3, 4]
    assert suspects_due(History([*doubtful, row(1, 1, "again", 9, suspect="load")]), 2) == []  # half of two trials
    twice = [row(1, n, "again", 9 + n, suspect="load") for n in (1, 2)]
    assert suspects_due(History([*doubtful, *twice]), 10) == [2, 3, 4]
    drifted = row(1, 3, "sentinel", 20, drift=0.5, drift_since=START)
    assert suspects_due(History([*doubtful, drifted]), 10) == []


def test_a_rerun_has_the_setting_of_the_first_run_and_the_next_number() -> None:
    job = rerun([row(4), row(4, 2, "confirm")], 4, "confirm", 3)
    assert (job.name, job.round, job.origin, job.proposal.values["cache_gb"]) == ("000004-03", 3, "confirm", 1.0)
    assert not job.is_new


def test_a_recommended_setting_has_one_confirmation_run_that_computes_its_prompts() -> None:
    study: Any = SimpleNamespace(rules={}, config={"recommend": {}})
    given = {"prefill": "restored", "objectives": "decode_tok_s,peak_memory_gb"}
    rows = [row(0, origin="reference", **{**given, "cache_gb": None, "decode_tok_s": 5.0}), row(1, **given),
            row(2, minute=1, **{**given, "decode_tok_s": 3.0, "peak_memory_gb": 2.0})]  # fmt: skip
    jobs = [confirmation(study, History(rows), trial, 1) for trial in (1, 2)]
    assert [(job.proposal.trial, job.run, job.origin, job.real_prefill) for job in jobs] == [
        (1, 1, "confirm", True), (2, 1, "confirm", False)
    ]  # fmt: skip
    rows.append(row(1, 1, "confirm", 2, **{**given, "prefill": "real"}))
    assert not confirmation(study, History(rows), 1, 1).real_prefill


def test_rounds_share_trials_and_hours() -> None:
    assert [trials_due(plan(trials=10, rounds=3), n) for n in (1, 2, 3, 4)] == [3, 6, 10, 10]
    config = {"budget": {"hours": 2.0}, "confirm": {"share": 0.5}}
    assert round_end_s(config, 2, 0, confirmed=False) == 2400
    assert round_end_s(config, 2, 1, confirmed=True) == 7200
    assert round_end_s({**config, "budget": {"hours": None}}, 2, 0, confirmed=True) is None


def test_a_space_that_cannot_run_is_refused() -> None:
    idle = [row(n, status="infeasible", status_reason="too large") for n in range(1, 202)]
    refuse_hopeless_space(idle[:200], idle[:200])
    with pytest.raises(StudyStopped, match=r"201 proposed settings cannot run, and 0 ran .*too large\); narrow"):
        refuse_hopeless_space(idle, idle)
    assert not has_reference(idle) and has_reference([row(0, origin="reference")])
