"""Outcomes: what Optuna gets for a row that failed, was stopped or violates a constraint."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine import Knobs
from harness.propose.outcomes import WORST, constraint_values, infeasibility, objective_values
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES
from harness.study.constraints import parse


def row(status: str = "ok", speed: float | None = 5.0, memory: float | None = 2.0, **more: Any) -> dict[str, Any]:
    figures = {"decode_tok_s": speed, "peak_memory_gb": memory, "perplexity": 4.0}
    return {**dict.fromkeys(NAMES), "trial": 1, "run": 0, "origin": "sampler", "status": status, **figures, **more}


def test_a_missing_objective_gets_the_worst_value_seen() -> None:
    rows = [row(speed=5.0), row(speed=3.0, memory=8.0), row("crash", speed=1.0)]
    assert objective_values(row("crash"), rows, OBJECTIVES) == [3.0, 8.0, 4.0]
    assert objective_values(row("stopped", 0.5, None), rows, OBJECTIVES) == [0.5, 8.0, 4.0]
    assert objective_values(row(speed=math.nan), rows, OBJECTIVES)[0] == 3.0
    assert objective_values(row("oom"), [], OBJECTIVES) == [WORST[d] for d in OBJECTIVES.values()]


def test_where_scoring_ended_early_the_best_end_of_the_interval_counts() -> None:
    """The sampler sees a lossy setting as bad as it is at least, not as the worst of all."""
    limit = parse("perplexity <= 1.02 * reference")
    rows = [row(), row(perplexity=9.0)]
    ended = row(perplexity=None, scoring_stopped="violates", perplexity_at_least=5.0, perplexity_at_most=7.0)
    assert objective_values(ended, rows, OBJECTIVES) == [5.0, 2.0, 5.0]
    rows = [{**r, **Knobs().as_dict()} for r in rows]
    assert constraint_values(ended, rows, [limit], 9.0)[limit.text] == pytest.approx(5 / 4.08 - 1)


@pytest.mark.parametrize(
    ("given", "limit_gb", "excess"),
    [
        (row(), 1.0, -1.0),
        (row("stopped"), 1.0, -1.0),
        (row("oom", seen_peak_gb=1.3), 1.0, 0.3),
        (row("infeasible", seen_peak_gb=0.1, predicted_peak_gb=2.0), 1.0, 1.0),
        (row("oom", seen_peak_gb=0.5), 1.0, 0.1),
        (row("crash"), math.inf, 1.0),
    ],
)
def test_infeasibility_is_the_share_above_the_limit(given: dict[str, Any], limit_gb: float, excess: float) -> None:
    assert infeasibility(given, limit_gb) == pytest.approx(excess)


def test_every_row_has_all_constraints_and_an_unknown_one_is_zero() -> None:
    constraints = [parse("peak_memory_gb <= 1.6"), parse("perplexity <= 1.01 * reference")]
    found = constraint_values(row(), [], constraints, 9.0)
    assert found == {"possible": -1.0, constraints[0].text: pytest.approx(0.25), constraints[1].text: 0.0}
    reference = row(origin="reference", perplexity=2.0, cache_gb=None)
    known = constraint_values(row(), [{**reference, **_lossless()}], constraints, 9.0)
    assert known[constraints[1].text] == pytest.approx(4 / 2.02 - 1)


def _lossless() -> dict[str, Any]:
    from engine import Knobs

    return Knobs().as_dict()
