"""Tables: a comparison as text for a terminal of 60 columns or more. Information is never in colour alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.results.metrics import QUALITY, SHORT, SPEEDS
from harness.show.text import number, with_interval

from .comparison import Against, Comparison
from .fronts import Fronts
from .identity import Identity
from .settings import EXACT, SAME, Ratio
from .sides import Side

EXPLAIN = (
    "The last figures are the ratio or the difference with its 95 % interval. noise: noise between runs explains the "
    "difference. ?: not confirmed."
)
MOST_TRIALS = 12  # numbers in one line
LONGEST = 70  # characters of a value among the differences
WIDE = 76  # columns from which figures have their own intervals


def show(console: Console, found: Comparison) -> None:
    """Print a comparison: the studies, then each later one against the base, then regressions if they are judged."""
    for side in found.sides:
        _fold(console, f"{side.letter}  ", f"{side.name}: {side.title}; {side.counts}; front of {len(side.front)}")
    for one in found.others:
        console.print()
        head = f"{one.side.letter} against A: {one.side.name} against {found.base.name}"
        console.print(Text(head, style="bold"), soft_wrap=True)
        console.print()
        for line in (*_identity(one), "", *_settings(found.base, one, console.width), "", EXPLAIN, ""):
            _fold(console, "", line)
        for line in (*_shared(one), *_fronts(found.base, one)):
            _fold(console, "", line)
    if found.limit is not None:
        console.print()
        for line in regression_lines(found):
            _fold(console, "", line)


def regression_lines(found: Comparison) -> list[str]:
    """The result of the regression check."""
    assert found.limit is not None
    limit = f"{found.limit:.3g}" if found.limit < 1e-4 else f"{100 * found.limit:.3g} %"
    lines = [f"regression: {r}" for r in found.regressions] or [f"no regression of more than {limit} beyond noise"]
    for one in found.others:
        skipped = {n: why for n, why in one.identity.incomparable.items() if n in found.base.metrics}
        lines += [f"not judged: {SHORT[n]} of {one.side.name}, because {why}" for n, why in skipped.items()]
    return lines


def _identity(one: Against) -> Iterator[str]:
    """What differs, by group, what is the same, and what follows for the figures."""
    known = one.identity
    for d in known.differences:
        yield f"differs in {d.group}: {d.name} {_cut(d.base)} -> {_cut(d.other)}"
    yield f"same: {', '.join(known.same) or 'nothing'}" + ("" if known.differences else "; nothing differs")
    yield from (f"note: {line}" for line in known.causes)
    reasons: dict[str, list[str]] = {}
    for metric, why in known.incomparable.items():
        if metric in one.side.metrics:
            reasons.setdefault(why, []).append(metric)
    yield from (f"not comparable: {', '.join(metrics)}, because {why}" for why, metrics in reasons.items())


def _settings(base: Side, one: Against, width: int) -> Iterator[str]:
    """Each named setting: its trials, the knobs that differ, and its figures. A pair of trials that comes again refers to
    the first."""
    metrics, letter = [n for n in base.metrics if n in one.side.metrics], one.side.letter
    first = max(len(SHORT[n]) for n in metrics)
    bars = width >= WIDE
    columns = (first, *((12, 12) if bars else (7, 7)), 24)
    yield _line(columns, "", "A", letter, f"{letter} / A", "")
    done: dict[tuple[int, int], str] = {}
    for p in one.pairings:
        if p.base is None or p.other is None:
            yield f"{p.name}: {_trial(p.base, p.base_confirmed)} in A, {_trial(p.other, p.other_confirmed)} in {letter}"
            continue
        trials = int(p.base["trial"]), int(p.other["trial"])
        if trials in done:
            yield f"{p.name}: the same trials as {done[trials]}"
            continue
        done[trials] = p.name
        named = f"{_trial(p.base, p.base_confirmed)} in A, {_trial(p.other, p.other_confirmed)} in {letter}"
        yield f"{p.name}: {named}, {'the same setting' if p.same_setting else 'another setting'}"
        if p.changed:
            yield f"  {p.changed}"
        for metric in metrics:
            some = [with_interval(q, metric) if bars else number(q[metric], 4) for q in (p.base, p.other)]
            yield _line(columns, SHORT[metric], *some, *_ratio(p.ratios.get(metric), one.identity))


def _line(columns: Sequence[int], first: str, *rest: str) -> str:
    cells = [f"{text:>{size}}" for text, size in zip(rest, columns[1:], strict=False)]
    return "  ".join([f"  {first:{columns[0]}}", *cells, rest[-1]]).rstrip()


def _ratio(found: Ratio | None, known: Identity) -> tuple[str, str]:
    if found is None:
        return "", ""
    if found.metric in known.incomparable:
        return "", "not comparable" if found.metric in QUALITY else f"{found.middle:.3g}x, not comparable"
    return interval(found), found.verdict


def interval(found: Ratio) -> str:
    """`1.36x (1.14 .. 1.62)` for a speed, `-2.3 % (-3.1 .. -1.5)` for another metric; `=` for equal figures."""
    if found.verdict == SAME:
        return "="
    low, high = found.limits()
    if found.metric in SPEEDS:
        return f"{found.middle:.3g}x ({low:.3g} .. {high:.3g})"
    ends = f" ({_percent(low)} .. {_percent(high)})" if high > low * (1 + EXACT) else ""
    return f"{_percent(found.middle)} %{ends}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.{2 if abs(ratio - 1) < 0.001 else 1}f}"


def _trial(point: Mapping[str, Any] | None, confirmed: bool | None) -> str:
    if point is None:
        return "none"
    return f"trial {point['trial']}" + (" ?" if confirmed is False else "")


def _shared(one: Against) -> Iterator[str]:
    pairs = one.shared.pairs
    yield f"settings measured in both: {len(pairs)}"
    for metric, mean in one.shared.means.items():
        if metric in one.identity.incomparable:
            continue
        some = [(r[metric].middle, f"{a}/{b}" if a != b else f"{a}") for a, b, r in pairs if metric in r]
        (least, t), (most, u) = min(some), max(some)
        span = f"; from {number(least)}x (trial {t}) to {number(most)}x (trial {u})" if mean.verdict != SAME else ""
        yield f"  {SHORT[metric]}: {f'{interval(mean)} on average, {mean.verdict}' if span else SAME}{span}"


def _fronts(base: Side, one: Against) -> Iterator[str]:
    fronts, letter = one.fronts, one.side.letter
    yield f"fronts: {len(base.front)} points in A, {len(one.side.front)} in {letter}"
    if fronts.reason:
        yield f"  not compared: {fronts.reason}"
        return
    yield f"  hypervolume: {number(fronts.ratio)}x ({number(fronts.low)} .. {number(fronts.high)}), {fronts.verdict}"
    yield from _covered(fronts, base, one.side)


def _covered(fronts: Fronts, base: Side, other: Side) -> Iterator[str]:
    for side, by, trials in ((base, other, fronts.base_beaten), (other, base, fronts.other_beaten)):
        names = ", ".join(map(str, trials[:MOST_TRIALS])) + (", ..." if len(trials) > MOST_TRIALS else "")
        which = f": {'trial' if len(trials) == 1 else 'trials'} {names}" if trials else ""
        yield f"  {by.letter} beats {len(trials)} of the {len(side.front)} points of {side.letter} beyond noise{which}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _fold(console: Console, head: str, text: str) -> None:
    """Print a line, folded at words to the terminal's width. Further lines are indented; rows of figures are kept."""
    whole = head + text
    indent = " " * (len(head) + len(text) - len(text.lstrip()) + 2)
    fits = len(whole) <= console.width
    lines = [whole] if fits else textwrap.wrap(
        whole, console.width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
