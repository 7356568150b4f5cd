"""Coordinators: one machine does nothing special, a shared study waits for its database. No database is used here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy

from harness import StudyStopped
from harness.propose.ask_tell import Proposal
from harness.results.history import History
from harness.run.job import Job
from harness.session import coordinator as module
from harness.session.coordinator import Coordinator, SharedCoordinator, Stop, pause

AWAY = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("connection refused"))


def row(trial: int) -> dict[str, Any]:
    return {"trial": trial, "run": 0}


class Proposals:
    """One proposal is open; `pending` counts its calls."""

    calls = 0

    def pending(self, rows: Any) -> list[Proposal]:
        self.calls += 1
        return [Proposal(5, "sampler", {})]


class Shared:
    """A database with one row and two running trials of other machines."""

    def __init__(self) -> None:
        self.beats: list[int] = []

    def take_over(self) -> int:
        return 1

    def look(self) -> tuple[list[dict[str, Any]], int]:
        return [row(7)], 2

    def claim_reference(self) -> bool:
        return False

    def beat(self, trial: int) -> None:
        self.beats.append(trial)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> tuple[SharedCoordinator, Shared, list[str]]:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    notes: list[str] = []
    storage: Any = SimpleNamespace(engine=SimpleNamespace(name="sqlite"))
    one = SharedCoordinator(storage, "demo", "us", 1.0, Stop(), notes.append)
    database = Shared()
    one._shared = database  # type: ignore[assignment]
    return one, database, notes


def test_one_machine_waits_for_nothing_and_claims_everything() -> None:
    one, proposals, history = Coordinator(storage=None), Proposals(), History([row(1)])  # type: ignore[arg-type]
    assert (one.owner, one.reference_elsewhere, one.claim_reference([])) == ("", False, True)
    assert one.take_over(history) == one.update(history) == 0 and len(history.known) == 1
    assert [p.trial for p in one.claim_open(proposals, [])] == [5]  # type: ignore[arg-type]
    assert one.claim_open(proposals, []) == [] and proposals.calls == 1  # type: ignore[arg-type]
    with pytest.raises(sqlalchemy.exc.OperationalError):
        one.reach(lambda: (_ for _ in ()).throw(AWAY))


def test_rows_of_other_machines_become_known(shared: tuple[SharedCoordinator, Shared, list[str]]) -> None:
    one, _, notes = shared
    history = History([row(1)])
    assert one.take_over(history) == 2
    assert ([r["trial"] for r in history.known], [r["trial"] for r in history.own]) == ([1, 7], [1])
    assert notes == ["1 trials of a machine that vanished are queued again"]


def test_an_outage_is_waited_for_and_open_trials_are_checked_again(
    shared: tuple[SharedCoordinator, Shared, list[str]],
) -> None:
    one, database, notes = shared
    proposals: Any = Proposals()
    assert len(one.claim_open(proposals, [])) == 1 and one.claim_open(proposals, []) == []
    failures = iter([AWAY, AWAY])

    def action() -> int:
        for e in failures:
            raise e
        return 3

    assert one.reach(action) == 3
    assert notes == ["the storage cannot be reached (connection refused); retrying for 0.05 s"]
    assert len(one.claim_open(proposals, [])) == 1 and database.beats == [5, 5]
    with pytest.raises(StudyStopped, match=r"cannot be reached \(connection refused\); all rows are saved"):
        one.reach(lambda: (_ for _ in ()).throw(AWAY))


def test_the_reference_is_measured_once_unless_a_constraint_needs_it(
    shared: tuple[SharedCoordinator, Shared, list[str]],
) -> None:
    one, _, _ = shared
    relative: Any = SimpleNamespace(relative=True)
    assert one.claim_reference([relative]) and not one.reference_elsewhere
    assert not one.claim_reference([]) and one.reference_elsewhere
    with one.beating(Job(Proposal(3, "sampler", {}), run=1)):  # a later run is not signalled
        pass


def test_a_pause_ends_when_the_user_stops() -> None:
    pause(0.0, Stop())
    pause(3600, Stop(soon=True))
    assert Stop(now=True).requested and not Stop().requested
