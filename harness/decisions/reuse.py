"""Reuse: what need not be measured because rows show it: the quality of a lossy setting, and trials that cannot succeed.

Lossless knobs do not change an answer, so quality belongs to the lossy knobs (with model and evaluation texts). It is
measured once, and later rows record the trial it was copied from. With a knob that depends on the cache's content, quality
depends on all knobs, and only the same setting has the same quality.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import Knobs
from engine.effective import effective
from engine.knobs import CACHE_DEPENDENT, DEFAULTS, HOT_SHARE, LOSSY, WORDS
from harness.results.metrics import METRICS, QUALITY
from harness.space.space import canonical

if TYPE_CHECKING:
    import pandas as pd

    from harness.study.constraints import Constraint

Row = Mapping[str, Any]
SAME_NLL = 2e-3  # nats; another order of rounding changes less, a wrong expert about a hundred times as much


def settings_of(row: Row) -> dict[str, Any]:
    """The knob values of a row that had an effect."""
    return effective({name: row[name] for name in Knobs.names() if row.get(name) is not None})


def quality_key(values: Row) -> str:
    """Equal texts mean equal quality: the lossy knobs in effect, or all knobs if one depends on the cache's content."""
    live = {k: v for k, v in effective({**DEFAULTS, **values}).items() if v is not None and v != DEFAULTS[k]}
    if "cold_bits" in live:
        live.setdefault("hot_share", HOT_SHARE)
    by_cache = any(name in CACHE_DEPENDENT for name in live)
    return canonical(live if by_cache else {k: v for k, v in live.items() if k in LOSSY})


def quality_source(rows: Sequence[Row], values: Row) -> Row | None:
    """The row whose run measured the quality of this setting; None if there is none yet."""
    key = quality_key(Knobs.from_mapping(values).as_dict())
    scored = (r for r in rows if r["status"] == "ok" and r["quality_from_trial"] is None and r["perplexity"] is not None)
    scored = (r for r in scored if r.get("removed_knobs") is None)
    return next((r for r in scored if quality_key({name: r[name] for name in Knobs.names()}) == key), None)


def settled_source(
    rows: Sequence[Row], trial: int, values: Row, objectives: Collection[str], constraints: Sequence[Constraint]
) -> Row | None:
    """The row whose run bounded the perplexity of this setting well enough, although scoring ended early; None if there is
    none. For a row of another trial, what the bounds decided must not depend on the speed of that trial."""
    key = quality_key(Knobs.from_mapping(values).as_dict())
    reference = reference_figures(rows)
    for row in rows:
        if row["status"] != "ok" or row["scoring_stopped"] is None or row["quality_from_trial"] is not None:
            continue
        ends = [row["perplexity_at_least"], row["perplexity_at_most"]]
        excess = [[c.excess(end, reference) for end in ends] for c in constraints if c.metric == "perplexity"]
        violated = any(all(e is not None and e > 0 for e in both) for both in excess)
        settled = violated or "perplexity" not in objectives
        if row["trial"] == trial or (settled and quality_key(settings_of(row)) == key):
            return row
    return None


def wrong_answer(source: Row, figures: Row) -> str | None:
    """Why answers differ from those of the row with the same quality; None if they agree or are unknown."""
    before, now = source.get("timed_nll"), figures.get("timed_nll")
    if before is None or now is None or source.get("decode_tokens") != figures.get("decode_tokens"):
        return None  # unknown, or of other tokens
    if abs(now - before) <= SAME_NLL:
        return None
    return (
        f"nll {now:.6g} over the timed tokens, but {before:.6g} in trial {source['trial']}, which differs in lossless knobs "
        "only: an answer is wrong"
    )


def reference_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that `reference` means in a constraint; None where unknown.

    They are the reference's. Quality may come from any setting without a lossy knob: lossless knobs do not change it.
    """
    default = Knobs().as_dict()
    exact = [r for r in rows if r["status"] == "ok" and all(r[name] == default[name] for name in LOSSY)]
    exact = [r for r in exact if r.get("removed_knobs") is None]
    exact.sort(key=lambda r: (r["origin"] != "reference", r["trial"], r["run"]))
    reference = next((r for r in exact if r["origin"] == "reference"), None)
    figures = {name: None if reference is None else reference[name] for name in METRICS}
    for name in QUALITY:
        figures[name] = next((r[name] for r in exact if r[name] is not None), None)
    return figures


def rival(points: pd.DataFrame, objectives: Sequence[str], predicted_gb: float, quality: Row | None) -> int | None:
    """The trial that a setting must beat in speed to enter the front; None if that is unknown.

    It is the fastest, by the lower end of its interval, among the trials of no worse quality whose memory is at most the
    setting's. The setting's memory is at least the predicted one plus the smallest excess over a prediction in any run.
    """
    bounded = {"decode_tok_s", "peak_memory_gb", *QUALITY}
    wanted = [name for name in objectives if name in QUALITY]
    if "decode_tok_s" not in objectives or not set(objectives) <= bounded or points.empty:
        return None
    if wanted and quality is None:
        return None
    rivals = points[(points["feasible"] != False) & ~points["suspect"].astype(bool)]  # noqa: E712
    if "peak_memory_gb" in objectives:
        on_top = float((rivals["peak_memory_gb"] - rivals["predicted_peak_gb"]).min())
        rivals = rivals[rivals["peak_memory_gb"] <= predicted_gb + max(0.0, on_top)]
    for name in wanted:
        assert quality is not None
        if quality[name] is None:
            return None
        worse = rivals[name] < quality[name] if METRICS[name] == "maximize" else rivals[name] > quality[name]
        rivals = rivals[~worse & rivals[name].notna()]  # unknown where scoring ended early
    return int(rivals["decode_tok_s_low"].idxmax()) if len(rivals) else None


SIZES = ("cache_gb", "expert_bits", "cold_bits", "hot_share", "resident_bits", "prefill_chunk")  # memory grows with them


def too_large(rows: Sequence[Row], values: Row) -> str | None:
    """Why a setting would run out of memory although arithmetic did not predict it; None if no row shows it.

    It is at least as large, in all of `SIZES`, as a setting that ran out of memory, and no setting as large as that one ran.
    """
    size = _size(Knobs.from_mapping(values).as_dict())
    ran_out = [r for r in rows if r["status"] == "oom" and not r["run"] and _within(_size(r), size)]
    if not ran_out:
        return None
    fine = [_size(r) for r in rows if r["status"] in ("ok", "stopped")]
    smaller = next((r for r in ran_out if not any(_within(_size(r), other) for other in fine)), None)
    if smaller is None:
        return None
    return f"at least as large in every size as trial {smaller['trial']}, which ran out of memory"


def _size(row: Row) -> tuple[float, ...]:
    """A setting's sizes; an unset one is infinite. A chunk that memory chooses is neither below nor above
    another."""
    sizes = (math.inf if row[name] is None or row[name] != row[name] else float(row[name]) for name in SIZES)
    chosen = float(row["prefill_chunk"] == WORDS["prefill_chunk"]["auto"])
    return (*sizes, chosen, -chosen)


def _within(small: tuple[float, ...], large: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(small, large, strict=True))


def typical_s(rows: Sequence[Row]) -> float | None:
    """The duration of a complete run, in s: the median of the ok runs. None before the first."""
    times = [r["wall_s"] for r in rows if r["status"] == "ok" and r["wall_s"] is not None and r["origin"] != "reference"]
    return statistics.median(times) if times else None
