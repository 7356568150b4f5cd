"""History: own and other rows in order, and a table that is built once per change."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.results.columns import NAMES
from harness.results.history import History


def row(trial: int, run: int = 0) -> dict[str, Any]:
    return {**dict.fromkeys(NAMES), "trial": trial, "run": run}


def numbers(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(r["trial"], r["run"]) for r in rows]


def test_rows_are_sorted_and_the_table_follows() -> None:
    history = History([row(2), row(1)])
    table = history.table
    assert history.table is table and history.own_table is table and history.known is history.own
    history.add(row(1, 1))
    assert numbers(history.own) == [(1, 0), (1, 1), (2, 0)]
    assert history.table["run"].tolist() == [0, 1, 0] and len(table) == 2


def test_rows_of_other_machines_are_known_but_not_own() -> None:
    history, other = History([row(2)]), row(1)
    history.set_others([other])
    table = history.table
    assert (numbers(history.known), numbers(history.own)) == ([(1, 0), (2, 0)], [(2, 0)])
    assert history.own_table["trial"].tolist() == [2]
    history.set_others([other])
    assert history.table is table  # nothing changed


def test_what_follows_from_the_table_is_computed_once_for_the_same_rows() -> None:
    history, asked = History([row(1)]), list[int]()

    def trials(table: pd.DataFrame) -> list[int]:
        asked.append(len(table))
        return list(table["trial"])

    assert history.derived(trials) == history.derived(trials) == [1] and asked == [1]
    history.add(row(2))
    assert history.derived(trials) == [1, 2]
    history.set_others([row(3)])
    assert history.derived(trials) == [1, 2, 3] and asked == [1, 2, 3]
