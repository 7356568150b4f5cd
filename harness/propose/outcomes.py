"""Outcomes: a measured row as objective values and constraints for Optuna.

A trial that could not run, or failed, is reported as complete, with the worst values seen so far and a violated constraint.
A trial reported as failed would be invisible to the sampler, which would propose its neighbourhood again and again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.decisions.reuse import reference_figures
from harness.results.columns import NOT_RUN
from harness.results.metrics import Direction
from harness.study.constraints import Constraint

WORST = {"maximize": 0.0, "minimize": 1e9}  # objective values as long as no trial has any
MEASURED = ("ok", "stopped", "dominated")  # statuses of settings that can run
SHOWN = ("status", "status_reason", "feasible", "violated", "suspect", "decode_tok_s_low", "decode_tok_s_high", "row_id")
Row = Mapping[str, Any]


def objective_values(row: Row, rows: Sequence[Row], objectives: Mapping[str, Direction]) -> list[float]:
    """The measured objectives of a row; for each missing one the worst value of all `rows`, or `WORST`."""
    values = []
    for name, direction in objectives.items():
        own = _known(row, name) if row["status"] in ("ok", "stopped", *NOT_RUN) else None
        if own is None or not math.isfinite(own):
            seen = [r[name] for r in rows if r["status"] == "ok" and r[name] is not None and math.isfinite(r[name])]
            worst = min if direction == "maximize" else max
            own = worst(seen) if seen else WORST[direction]
        values.append(float(own))
    return values


def constraint_values(row: Row, rows: Sequence[Row], constraints: Sequence[Constraint], limit_gb: float) -> dict[str, float]:
    """Each constraint's excess, above 0 if violated. Unknown ones are 0: Optuna needs the same names for every trial."""
    reference = reference_figures(rows) if constraints else {}
    excess = {c.text: c.excess(_known(row, c.metric), reference) or 0.0 for c in constraints}
    return {"possible": infeasibility(row, limit_gb), **excess}


def _known(row: Row, name: str) -> float | None:
    """A figure of a row. Where scoring ended early, perplexity is the end of its interval that is best for the setting: it
    lost, or is clear of every bound, even so."""
    own: float | None = row.get(name)
    return row.get(f"{name}_at_least") if own is None and name == "perplexity" else own


def infeasibility(row: Row, limit_gb: float) -> float:
    """The constraint of every trial: above 0 if it could not run. Out of memory counts by its share above the limit."""
    if row["status"] in MEASURED:
        return -1.0
    peak = max(row["seen_peak_gb"] or 0.0, row["predicted_peak_gb"] or 0.0)
    over = peak / limit_gb - 1 if math.isfinite(limit_gb) else 0.0
    return over if over > 0 else 1.0 if row["status"] != "oom" else 0.1


def attributes(row: Row) -> dict[str, Any]:
    """The facts of a row for readers of Optuna's study, as user attributes. `log` is relative to the study's folder."""
    log = {} if row["status"] in NOT_RUN else {"log": log_of(row["trial"], row["run"] or 0)}
    return {name: row[name] for name in SHOWN if row.get(name) is not None} | log


def log_of(trial: int, run: int) -> str:
    """The path of a run's log in the study's folder."""
    return f"logs/trial-{trial:06d}-{run:02d}.log"
