"""Proposals: trial numbers, origins, constraints, the copy into the next round, and external offers."""

from __future__ import annotations

from typing import Any

import pytest
from asked import CONFIG, row_of, search, space
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from harness import ConfigError
from harness.propose.ask_tell import Proposal, Proposals
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


def test_every_nth_setting_is_a_random_control_and_each_has_an_origin() -> None:
    rows: list[dict[str, Any]] = []
    made = go_on(proposals(InMemoryStorage(), rows, random_every=5), rows, 20)
    assert [p.trial for p in made] == list(range(1, 21))
    assert [p.origin for p in made[:5]] == ["anchor"] * 4 + ["anchor" if made[4].origin == "anchor" else "random"]
    assert {p.trial for p in made if p.origin == "random"} <= {5, 10, 15, 20}
    assert sum(p.origin == "random" for p in made) >= 3
    assert {p.proposer for p in made} == {"anchor", "random", "tpe"}
    seeds = [p.seed for p in made if p.origin == "sampler"]
    assert len(set(seeds)) == len(seeds)


def test_failed_and_infeasible_trials_are_reported_as_complete_with_their_constraints() -> None:
    rows: list[dict[str, Any]] = []
    asked = proposals(InMemoryStorage(), rows, constraints=(parse("peak_memory_gb <= 0.6"),))
    go_on(asked, rows, 2)
    go_on(asked, rows, 1, status="oom", decode_tok_s=None, peak_memory_gb=None, perplexity=None, seen_peak_gb=1.3)
    go_on(asked, rows, 1, peak_memory_gb=0.9)
    oom, fat = asked.trials[2:4]
    assert all(t.state == TrialState.COMPLETE for t in asked.trials[:4])
    assert (oom.constraints["possible"], oom.constraints["peak_memory_gb <= 0.6"]) == (pytest.approx(0.3), 0.0)
    assert (fat.constraints["possible"], fat.constraints["peak_memory_gb <= 0.6"]) == (-1.0, pytest.approx(0.5))
    assert oom.values == [min(r["decode_tok_s"] for r in rows[:2]), 0.5, 17.0]


def test_the_next_round_copies_the_settings_of_its_space_and_continues_the_numbers() -> None:
    rows: list[dict[str, Any]] = []
    storage = InMemoryStorage()
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


def test_settings_that_differ_in_a_dropped_knob_are_copied() -> None:
    rows: list[dict[str, Any]] = []
    storage = InMemoryStorage()
    go_on(proposals(storage, rows), rows, 10)
    where = space(read_threads=2)
    second = Proposals(storage, "s round 2", search(), where, (), rows, dropped={"read_threads"})
    assert len(second.trials) == 10


def test_external_offers_come_first_and_are_marked() -> None:
    rows: list[dict[str, Any]] = []
    asked = proposals(InMemoryStorage(), rows)
    go_on(asked, rows, 6)
    assert asked.offer({"cache_gb": 0.055, "read_threads": 7, "expert_bits": 4}, "my_script", "more threads")
    first = asked.ask()
    assert (first.origin, first.proposer, first.note) == ("proposer", "my_script", "more threads")
    assert first.values == {"cache_gb": 0.055, "read_threads": 7, "expert_bits": 4}
    assert not asked.offer(first.values, "my_script")
    with pytest.raises(ConfigError, match="read_threads=99 is outside its search space"):
        asked.offer({"read_threads": 99}, "my_script")


def test_a_resumed_study_draws_other_settings() -> None:
    rows: list[dict[str, Any]] = []
    storage = InMemoryStorage()
    go_on(proposals(storage, rows, sampler="random"), rows, 8)
    more = go_on(proposals(storage, rows, sampler="random"), rows, 8)
    settings = [tuple(sorted(p.values.items(), key=str)) for p in more]
    before = [tuple(sorted((k, r[k]) for k in CONFIG)) for r in rows[:8]]
    assert not set(map(str, settings)) & set(map(str, before))
