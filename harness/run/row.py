"""Row of a run: figures, facts of the machine, and the identity of the study, without paths of this machine."""

from __future__ import annotations

import statistics
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import Knobs, __version__
from engine.system.shipped import PACKAGES, home
from harness.decisions.reuse import typical_s
from harness.machine.identity import identity
from harness.numerics.speed_interval import speeds
from harness.results.columns import NAMES, SCHEMA_VERSION
from harness.results.metrics import QUALITY
from harness.study.study import Study

from .job import Job, Row
from .supervise import Outcome

OF_QUALITY = (
    "perplexity_se", "nll", "scored_tokens", "scoring_stopped", "perplexity_at_least", "perplexity_at_most",
)  # fmt: skip


def make_row(study: Study, job: Job, outcome: Outcome, facts: Mapping[str, Any], sampler: str) -> Row:
    """The row of a run's outcome. `facts`: start, attempt, prediction and guard columns; `sampler`: the one in use."""
    row: Row = dict.fromkeys(NAMES)
    row.update(Knobs.from_mapping(job.proposal.values).as_dict(), **study.computes_on)
    row.update({k: v for k, v in outcome.figures.items() if k in row})
    row.update(identity())
    row.update(facts)
    if outcome.token_ms:
        row.update(speeds(outcome.token_ms))
    row.update(
        row_id=uuid.uuid4().hex,
        schema_version=SCHEMA_VERSION,
        headrace_version=__version__,
        trial=job.proposal.trial,
        run=job.run,
        round=job.round,
        status=outcome.status,
        status_reason=portable(study, outcome.reason),
        origin=job.origin or job.proposal.origin,
        proposer=job.proposal.proposer or None,
        note=job.proposal.note or None,
        log_tail=portable(study, outcome.log_tail),
        objectives=",".join(study.objectives),
        seen_peak_gb=outcome.seen_peak_gb,
        wall_s=outcome.wall_s,
        slept_s=outcome.slept_s,
        score_s=outcome.score_s,
        **outcome.parts,
        study=study.name,
        seed=study.seed,
        sampler=sampler,
        sampler_seed=job.proposal.seed,
        space=study.space_fingerprint,
        eval_fingerprint=study.judge.fingerprint,
        eval_texts=study.judge_name,
        model=study.model,
        architecture=study.architecture,
        model_fingerprint=study.model_fingerprint,
        limit_gb=study.limit_gb,
        device_profile=study.device_profile,
        engine=study.config["engine"]["command"] or study.config["engine"]["module"],
        **study.protocol,
    )
    if (ended := outcome.scoring_stopped) is not None:
        row.update(scoring_stopped=ended["reason"], scored_tokens=ended["tokens"])
        row.update(perplexity_at_least=ended["at_least"], perplexity_at_most=ended["at_most"])
    return row


def copy_quality(row: Row, source: Mapping[str, Any]) -> None:
    """Take the quality of the row `source`, whose setting has the same quality by construction."""
    row["quality_from_trial"] = source["trial"]
    for name in (*QUALITY, *OF_QUALITY):
        row[name] = source[name]


def saved_s(row: Row, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds saved by a run that was not made or not finished, or by quality that was reused; None if nothing was saved."""
    typical = typical_s(rows)
    if row["status"] in ("infeasible", "dominated") and not row["wall_s"]:
        return typical
    if row["status"] == "stopped":
        return None if typical is None else max(0.0, typical - row["wall_s"])
    if row["scoring_stopped"] is not None and row["quality_from_trial"] is None and row["score_s"] is not None:
        whole = max((r["scored_tokens"] or 0 for r in rows), default=0)
        return float(row["score_s"] * max(0.0, whole / row["scored_tokens"] - 1))
    if row["quality_from_trial"] is not None:
        scored = [r["score_s"] for r in rows if r["score_s"] is not None]
        return statistics.median(scored) if scored else None
    return None


def portable(study: Study, text: str | None) -> str | None:
    """Text of a log without this machine's paths, because rows are meant to be shared."""
    places = {study.checkpoint: study.model, study.folder: study.name, Path(sys.prefix): "python", PACKAGES: "headrace"}
    if (own := home()) is not None:
        places[own] = "~"
    for place, name in places.items():
        if text and len(place.parts) > 1:
            text = text.replace(str(place), name)
    return text
