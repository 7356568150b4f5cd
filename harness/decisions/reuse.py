"""What need not be measured because it is known: quality of a lossy setting, and trials that cannot enter the front.

Lossless knobs cannot change an answer, so quality belongs to the lossy setting (with the model and the judge): it is
measured once, and each later row says whose figure it has. Knobs that decide by what is cached make quality depend on all
knobs; then only the same setting has the same quality.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import Knobs
from engine.effective import effective
from engine.knobs import CACHE_DEPENDENT, DEFAULTS, HOT_SHARE, LOSSY
from harness.results.metrics import METRICS, QUALITY
from harness.space.space import canonical

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
SAME_NLL = 2e-3  # nats: what rounding in another order may change; a wrong expert changes a hundred times as much


def settings_of(row: Row) -> dict[str, Any]:
    """The knob values of a row, without those that had no effect."""
    return effective({name: row[name] for name in Knobs.names() if row.get(name) is not None})


def quality_key(values: Row) -> str:
    """One text for one quality: the lossy knobs in effect, and all knobs where one decides by the cache."""
    live = {k: v for k, v in effective({**DEFAULTS, **values}).items() if v is not None and v != DEFAULTS[k]}
    if "cold_bits" in live:
        live.setdefault("hot_share", HOT_SHARE)
    by_cache = any(name in CACHE_DEPENDENT for name in live)
    return canonical(live if by_cache else {k: v for k, v in live.items() if k in LOSSY})


def quality_source(rows: Sequence[Row], values: Row) -> Row | None:
    """The row whose run measured the quality of this setting; None if none has yet."""
    key = quality_key(Knobs.from_mapping(values).as_dict())
    scored = (r for r in rows if r["status"] == "ok" and r["quality_from_trial"] is None and r["perplexity"] is not None)
    scored = (r for r in scored if r.get("removed_knobs") is None)
    return next((r for r in scored if quality_key({name: r[name] for name in Knobs.names()}) == key), None)


def wrong_answer(source: Row, figures: Row) -> str | None:
    """Why the answers of a run are not those of the row with the same quality; None if they are, or neither says."""
    before, now = source.get("timed_nll"), figures.get("timed_nll")
    if before is None or now is None or source.get("decode_tokens") != figures.get("decode_tokens"):
        return None  # not said, or of other tokens
    if abs(now - before) <= SAME_NLL:
        return None
    return (
        f"nll {now:.6g} over the timed tokens, but trial {source['trial']}, which lossless knobs alone tell apart from it, "
        f"had {before:.6g}: an answer is wrong"
    )


def reference_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """What a constraint's `reference` stands for: the reference's figures, or of quality, which lossless knobs cannot
    change, those of any setting without a lossy knob. None where nothing says."""
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
    """The trial that a setting must be faster than to enter the front: the fastest, by its lower end of tokens over time, of
    those that take no more memory than the setting surely will, at no worse quality. None where that cannot be said.

    Its memory is at least what arithmetic foresees plus the least that any run had on top of that.
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
        rivals = rivals[~worse]
    return int(rivals["decode_tok_s_low"].idxmax()) if len(rivals) else None


SIZES = ("cache_gb", "expert_bits", "cold_bits", "hot_share", "resident_bits", "prefill_chunk")  # memory grows with them


def too_large(rows: Sequence[Row], values: Row) -> str | None:
    """Why a setting would run out of memory, learned where arithmetic did not foresee it: it is no smaller in anything than
    one that did, and nothing that large ever ran. None if nothing says so."""
    size = _size(Knobs.from_mapping(values).as_dict())
    ran_out = [r for r in rows if r["status"] == "oom" and not r["run"] and _within(_size(r), size)]
    if not ran_out:
        return None
    fine = [_size(r) for r in rows if r["status"] in ("ok", "stopped")]
    smaller = next((r for r in ran_out if not any(_within(_size(r), other) for other in fine)), None)
    if smaller is None:
        return None
    return f"no smaller in anything than trial {smaller['trial']}, which ran out of memory"


def _size(row: Row) -> tuple[float, ...]:
    """A setting's sizes; one that is unset is as large as can be."""
    return tuple(math.inf if row[name] is None or row[name] != row[name] else float(row[name]) for name in SIZES)


def _within(small: tuple[float, ...], large: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(small, large, strict=True))


def typical_s(rows: Sequence[Row]) -> float | None:
    """How long a whole run takes: the median of those that ended well. None before the first."""
    times = [r["wall_s"] for r in rows if r["status"] == "ok" and r["wall_s"] is not None and r["origin"] != "reference"]
    return statistics.median(times) if times else None
