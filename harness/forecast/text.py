"""Text: a forecast for people, with its verdict in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

from .forecast import RUN_S, Forecast, Row
from .interval import COVERAGE, SOURCES

WORDS = {
    "disk": "the disk", "compute": "computing", "sync": "waiting for each layer's choice",
    "misses": "what misses cost besides their bytes",
}  # fmt: skip


def report(found: Forecast) -> str:
    """The whole forecast, within 80 columns as far as names allow."""
    return "\n".join(_lines(found))


def verdict(found: Forecast) -> str:
    """What to expect, in one sentence."""
    best, model, where = found.best, found.model, found.machine.device.name
    where = "this machine" if where == "auto" else where
    at = f"{model.title} at {best.bits} bits"
    if not best.fits:
        return (
            f"{at} does not fit on {where}: it needs {best.memory_gb:.3g} GB with the smallest cache, and a run may use "
            f"{found.limit_gb:.3g}."
        )
    whole = "everything in memory" if best.cached_share >= 1 else f"{best.cache_gb:.3g} GB of experts cached"
    trials = f"{_range(found)} trial{'' if found.trials == 1 else 's'}"
    return (
        f"{at} on {where}: {best.tok_s.middle:.2g} tok/s ({best.tok_s.low:.2g} to {best.tok_s.high:.2g}) with {whole}, "
        f"limited by {WORDS[best.limit]}; it takes {found.disk_gb[best.bits]:.3g} GB of disk, and {RUN_S / 3600:.0f} hours "
        f"hold about {trials}."
    )


def _lines(found: Forecast) -> Iterator[str]:
    model, best = found.model, found.best
    yield f"{model.title}: {model.layers} layers of {model.experts} experts, {model.top_k} a token"
    yield f"{found.machine.device}"
    for line in found.machine.lines:
        yield f"  {line}"
    if found.own_trace:
        yield f"  hit rates: the model's own trace ({found.worlds[0]}), replayed"
    else:
        yield "  hit rates: replayed in this shape (6 of its layers, which are alike) with the localities"
        yield f"  of {', '.join(found.worlds)}; its own is not known"
    yield ""
    yield "  bits  cache GB  cached  memory GB  GB a token  tok/s  80 % interval   limit"
    for row in found.rows:
        yield _row_line(row)
    if any(not row.own for row in found.rows):
        yield "  * after packing to these bits (lossy); the resident weights stay as they are"
    if any(not row.fits for row in found.rows):
        yield f"  ! more than the {found.limit_gb:.3g} GB that a run may use"
    yield ""
    yield f"At {best.bits} bits with {best.cache_gb:.3g} GB of experts cached"
    parts = ", ".join(f"{name} {value:.3g}" for name, value in found.parts_gb.items() if value >= 0.0005)
    yield f"  memory   {sum(found.parts_gb.values()):.3g} of {found.limit_gb:.3g} GB: {parts}"
    yield f"  disk     {', '.join(f'{gb:.4g} GB at {bits} bits' for bits, gb in found.disk_gb.items())}"
    spent = ", ".join(f"{name} {ms:.3g}" for name, ms in best.parts_ms.items())
    yield f"  a token  {sum(best.parts_ms.values()):.3g} ms: {spent}"
    least = "at least " if found.ttft_is_least else ""
    times = ", ".join(f"{least}{_seconds(s)} after {n:,} tokens" for n, s in found.ttft_s.items())
    why = " (reads and weights; no profile has a prompt's arithmetic)" if found.ttft_is_least else ""
    yield f"  first token  {times}{why}"
    times = f"about {_seconds(found.trial_s)}"
    if found.new_trial_s > found.trial_s:
        times += f", or {_seconds(found.new_trial_s)} with new lossy knobs"
    yield f"  a trial  {times}: {_range(found)} in {RUN_S / 3600:.0f} hours"
    if found.besides is not None:
        yield f"           {found.besides}"
    yield f"  interval {COVERAGE * 100:.0f} %, of its squared width: {_shares(best)}"
    yield ""
    yield verdict(found)


def _range(found: Forecast) -> str:
    """The trials in 8 hours, as a range unless they are measured."""
    return f"{found.trials}" if found.least_trials == found.trials else f"{found.least_trials} to {found.trials}"


def _row_line(row: Row) -> str:
    mark = ("" if row.own else "*") + ("" if row.fits else "!")
    t = row.tok_s
    around = f"{t.low:.2g} to {t.high:.2g}"
    return (
        f"  {f'{row.bits}{mark}':4}  {row.cache_gb:8.3g}  {row.cached_share:6.0%}  {row.memory_gb:9.3g}  {row.read_gb:10.3g}"
        f"  {t.middle:5.2g}  {around:14}  {row.limit}"
    )


def _shares(row: Row) -> str:
    return ", ".join(f"{name} {row.tok_s.shares[name]:.0%}" for name in SOURCES)


def _seconds(seconds: float) -> str:
    """`12 s`, `3.5 min` or `2.1 h`."""
    size, unit = next(((n, u) for n, u in ((3600, "h"), (60, "min")) if seconds >= 2 * n), (1, "s"))
    return f"{seconds / size:.2g} {unit}" if seconds / size < 100 else f"{seconds / size:.0f} {unit}"
