"""Pruning: which settings need no run, or no complete one, because they cannot enter the front.

A new setting has a rival: the fastest point with no more memory and no worse quality. Where arithmetic bounds the setting's
speed below the rival's, it is not run. Otherwise the child receives the rival's speed and stops early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine import Knobs, Protocol
from harness.analysis.estimates import estimates, noise
from harness.decisions.recommend import default_trial
from harness.decisions.reuse import quality_key, reference_figures, rival, settings_of, too_large
from harness.results.history import History
from harness.results.metrics import QUALITY
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
    some = history.derived(estimates)
    trial = rival(some, list(study.objectives), predicted_gb, source)
    if trial is None:
        return None
    deviation = history.derived(noise).loc["decode_tok_s", "sd"]
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


def score_rule(study: Study, job: Job, history: History, reference_nll: str) -> dict[str, Any] | None:
    """The request's `stop_scoring` for a new lossy setting, by its perplexity alone; None if it is scored completely.

    `reference_nll`: the file with the log-likelihoods of the unchanged model. A setting of the lossy knobs that lost to a
    point of the front once is scored completely the next time, because it may be faster then.
    """
    error, rows = study.config["protocol"]["stop_scoring_error"], history.known
    others = any(name in QUALITY and name != "perplexity" for name in study.objectives)
    others |= study.wants_kl or study.json_prompts is not None
    lossless = not Knobs.from_mapping(job.proposal.values).lossy
    is_default = default_trial(history.table) in (None, job.proposal.trial)  # it is in every report
    if not error or others or lossless or not job.is_new or is_default:
        return None
    own = reference_figures(rows)
    scored = next((r["scored_tokens"] for r in rows if r["perplexity"] is not None and r["scored_tokens"]), None)
    key = quality_key(Knobs.from_mapping(job.proposal.values).as_dict())
    if own["perplexity"] is None or scored is None or any(_stopped(r) and quality_key(settings_of(r)) == key for r in rows):
        return None
    bounds = [
        {"text": c.text, "value": c.bound(own), "upper": c.upper, "constraint": True}
        for c in study.constraints
        if c.metric == "perplexity"
    ]
    rivals = None
    if "perplexity" not in study.objectives:
        loss = study.config["recommend"]["max_loss"]
        value = own["perplexity"] * (1 + loss)
        bounds.append({"text": "recommend.max_loss", "value": value, "upper": True, "constraint": False})
    elif set(study.objectives) <= {"decode_tok_s", "peak_memory_gb", "perplexity"}:
        rivals = _points(history)
    else:
        rivals = []
    deviation = float(history.derived(noise).loc["decode_tok_s", "sd"])
    return {
        "error": error, "tokens": int(scored), "reference": reference_nll, "noise": deviation, "bounds": bounds,
        "rivals": rivals,
    }  # fmt: skip


def _stopped(row: Mapping[str, Any]) -> bool:
    return row["scoring_stopped"] is not None and row["quality_from_trial"] is None


def _points(history: History) -> list[dict[str, float]]:
    """The measured, feasible points whose perplexity is complete, without suspect ones."""
    some = history.derived(estimates)
    some = some[(some["feasible"] != False) & ~some["suspect"].astype(bool)]  # noqa: E712
    some = some[["trial", "decode_tok_s_low", "peak_memory_gb", "perplexity"]].dropna()
    names = ("trial", "tok_s", "gb", "perplexity")
    return [dict(zip(names, map(float, point), strict=True)) for point in some.itertuples(index=False)]


def stop_rule(study: Study, to_beat: Rival, rows: Sequence[Row], tokens: Tokens) -> dict[str, Any] | None:
    """The request's `stop`: the rival's speed and its token times, for early stopping; None without these times."""
    error = study.config["protocol"]["stop_error"]
    trial = to_beat.trial
    run = next((r["run"] for r in rows if r["trial"] == trial and (trial, r["run"]) in tokens), None)
    if not error or run is None:
        return None
    times = [round(float(ms), 4) for ms in tokens[trial, run]]
    return {"below_tok_s": to_beat.tok_s, "error": error, "noise": to_beat.noise, "rival_ms": times}
