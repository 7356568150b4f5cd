"""What Optuna is asked and told: numbers, origins, constraints, rounds, offers from outside, missing databases."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from asked import CONFIG, row_of, search, space
from optuna.trial import TrialState

from harness import ConfigError, ResultsError
from harness.propose.ask_tell import Proposal, Proposals, open_storage
from harness.propose.storage import open_database
from harness.space.space import Space
from harness.study.constraints import parse


def proposals(
    storage: Any, rows: list[dict[str, Any]], name: str = "s", where: Space | None = None, **values: Any
) -> Proposals:
    where = where or space()
    return Proposals(storage, name, search(**values), where, where.anchors() if name == "s" else (), rows)


def go_on(asked: Proposals, rows: list[dict[str, Any]], count: int, **values: Any) -> list[Proposal]:
    made = []
    for _ in range(count):
        made.append(asked.ask())
        rows.append(row_of(made[-1], **values))
        asked.tell(rows[-1], rows)
    return made


def test_every_nth_setting_is_a_random_control_and_all_say_who_proposed_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    made = go_on(proposals(open_storage(tmp_path), rows, random_every=5), rows, 20)
    assert [p.trial for p in made] == list(range(1, 21))
    assert [p.origin for p in made[:5]] == ["anchor"] * 4 + ["anchor" if made[4].origin == "anchor" else "random"]
    assert {p.trial for p in made if p.origin == "random"} <= {5, 10, 15, 20}
    assert sum(p.origin == "random" for p in made) >= 3
    assert {p.proposer for p in made} == {"anchor", "random", "tpe"}
    seeds = [p.seed for p in made if p.origin == "sampler"]
    assert len(set(seeds)) == len(seeds)


def test_what_could_not_run_is_told_as_infeasible_and_never_as_failed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    asked = proposals(open_storage(tmp_path), rows, constraints=(parse("peak_memory_gb <= 0.6"),))
    go_on(asked, rows, 3)
    go_on(asked, rows, 1, status="oom", decode_tok_s=None, peak_memory_gb=None, perplexity=None, seen_peak_gb=1.3)
    go_on(asked, rows, 1, status="crash", decode_tok_s=None, peak_memory_gb=None, perplexity=None)
    go_on(asked, rows, 1, peak_memory_gb=0.9)
    go_on(asked, rows, 1, status="stopped", perplexity=None, decode_tok_s=0.5)
    oom, crash, fat, stopped = asked.trials[3:7]
    assert all(t.state == TrialState.COMPLETE for t in asked.trials)
    assert oom.constraints["possible"] == pytest.approx(0.3)
    assert crash.constraints["possible"] == 1.0
    assert (fat.constraints["possible"], fat.constraints["peak_memory_gb <= 0.6"]) == (-1.0, pytest.approx(0.5))
    assert stopped.constraints == {"possible": -1.0, "peak_memory_gb <= 0.6": pytest.approx(-1 / 6)}
    worst = min(r["decode_tok_s"] for r in rows[:3])
    assert oom.values == crash.values == [worst, 0.5, 17.0]
    assert stopped.values == [0.5, 0.9, 17.0] or stopped.values == [0.5, 0.5, 17.0]


def test_the_next_round_carries_what_its_space_holds_and_counts_on(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    storage = open_storage(tmp_path)
    go_on(proposals(storage, rows), rows, 12)
    narrow = space(read_threads={"type": "int", "low": 1, "high": 4}, expert_bits=8)
    second = proposals(storage, rows, "s round 2", narrow)
    fits = {r["trial"] for r in rows if r["read_threads"] <= 4 and r["expert_bits"] == 8}
    assert {t.user_attrs["trial"] for t in second.trials} == fits
    assert all(t.state == TrialState.COMPLETE for t in second.trials)
    assert [p.trial for p in go_on(second, rows, 3)] == [13, 14, 15]
    again = proposals(storage, rows, "s round 2", narrow)
    assert again.pending(rows) == []
    assert again.ask().trial == 16
    assert len(storage.get_all_studies()) == 2


def test_a_dropped_knob_does_not_keep_earlier_settings_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    storage = open_storage(tmp_path)
    go_on(proposals(storage, rows), rows, 10)
    where = space(read_threads=2)
    second = Proposals(storage, "s round 2", search(), where, (), rows, dropped={"read_threads"})
    assert len(second.trials) == 10


def test_offers_from_outside_come_first_and_are_marked(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    asked = proposals(open_storage(tmp_path), rows)
    go_on(asked, rows, 6)
    assert asked.offer({"cache_gb": 0.055, "read_threads": 7, "expert_bits": 4}, "my_script", "more threads")
    first = asked.ask()
    assert (first.origin, first.proposer, first.note) == ("proposer", "my_script", "more threads")
    assert first.values == {"cache_gb": 0.055, "read_threads": 7, "expert_bits": 4}
    assert not asked.offer(first.values, "my_script")
    with pytest.raises(ConfigError, match="read_threads=99 is outside its search space"):
        asked.offer({"read_threads": 99}, "my_script")


def test_asking_goes_on_with_other_draws_after_a_resume(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    storage = open_storage(tmp_path)
    go_on(proposals(storage, rows, sampler="random"), rows, 8)
    more = go_on(proposals(storage, rows, sampler="random"), rows, 8)
    settings = [tuple(sorted(p.values.items(), key=str)) for p in more]
    before = [tuple(sorted((k, r[k]) for k in CONFIG)) for r in rows[:8]]
    assert not set(map(str, settings)) & set(map(str, before))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "storage.url cannot be read"),
        ("mysql://a:secret@h/db", "mysql://a:***@h/db is not of a database that machines can share"),
        ("postgresql://a:secret@127.0.0.1:1/db", "cannot be reached"),
    ],
)
def test_databases_that_are_not_there(url: str, expected: str) -> None:
    with pytest.raises(ConfigError) as e:
        open_database(url, 60)
    assert expected in str(e.value)
    assert "\n" not in str(e.value) and "secret" not in str(e.value)


def test_a_storage_of_another_version_of_optuna(tmp_path: Path) -> None:
    import sqlite3

    optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num='v0.9.0.a'")
    with pytest.raises(ResultsError, match=r"another version of Optuna .* study.name=OTHER"):
        open_storage(tmp_path)


def test_a_storage_on_a_full_disk_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(tmp_path)

    def full(*args: Any, **more: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(ResultsError, match="database or disk is full"):
        open_storage(tmp_path)
    assert (tmp_path / "study.db").exists() and not list(tmp_path.glob("damaged*"))
