"""Pruning: which settings need no run, or no complete one, because they cannot enter the front.

A new setting has a rival: the fastest point with no more memory and no worse quality. Where arithmetic bounds the setting's
speed below the rival's, it is not run. Otherwise the child receives the rival's speed and stops early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine import Knobs, Protocol
from harness.analysis.estimates import estimates, noise
from harness.decisions.reuse import rival, too_large
from harness.results.history import History
from harness.study.study import Study

from ..job import Job, Rival, Row

Tokens = Mapping[tuple[int, int], Sequence[float]]  # (trial, run) -> time of each token, ms


def infeasible(study: Study, job: Job, rows: Sequence[Row]) -> tuple[str | None, float]:
    """Why a setting cannot run, or None, and its predicted peak memory in GB."""
    reason, predicted_gb = study.forbidden(job.proposal.values)
    if reason is None and job.is_new:
        reason = too_large(rows, job.proposal.values)
    return reason, predicted_gb


def rival_of(
    study: Study, job: Job, history: History, predicted_gb: float, source: Mapping[str, Any] | None
) -> Rival | None:
    """The rival of a new setting; None if it has none, or must be measured in any case. `source`: the row with the same
    quality."""
    quality_unknown = source is None and study.scored
    if job.run or quality_unknown or job.proposal.origin in ("reference", "anchor"):
        return None
    some = estimates(history.table)
    trial = rival(some, list(study.objectives), predicted_gb, source)
    if trial is None:
        return None
    deviation = noise(history.table).loc["decode_tok_s", "sd"]
    return Rival(trial, float(some.loc[trial, "decode_tok_s_low"]), float(deviation))


def dominated(study: Study, job: Job, to_beat: Rival) -> str | None:
    """Why a setting cannot enter the front by arithmetic: a read bandwidth limit bounds its speed. None if it may."""
    protocol = Protocol.from_mapping(study.protocol)
    knobs = Knobs.from_mapping(job.proposal.values)
    ceiling = study.engine.ceiling_tok_s(study.checkpoint, knobs, study.judge, protocol)
    if ceiling is None or ceiling >= to_beat.tok_s:
        return None
    return (
        f"at most {ceiling:.3g} tokens/s with ssd_gbps={knobs.ssd_gbps:g}; trial {to_beat.trial} reaches "
        f"{to_beat.tok_s:.3g} with no more memory and no worse quality"
    )


def stop_rule(study: Study, to_beat: Rival, rows: Sequence[Row], tokens: Tokens) -> dict[str, Any] | None:
    """The request's `stop`: the rival's speed and its token times, for early stopping; None without these times."""
    error = study.config["protocol"]["stop_error"]
    trial = to_beat.trial
    run = next((r["run"] for r in rows if r["trial"] == trial and (trial, r["run"]) in tokens), None)
    if not error or run is None:
        return None
    times = [round(float(ms), 4) for ms in tokens[trial, run]]
    return {"below_tok_s": to_beat.tok_s, "error": error, "noise": to_beat.noise, "rival_ms": times}
