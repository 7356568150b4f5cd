"""Hours as a table: where a study's time went, for report, status and page."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.analysis.runs.hours import UNKNOWN, Hours

from .text import duration

HEADERS = ("part", "s", "share", "confirming, s")


def hours_rows(found: Hours) -> list[list[str]]:
    """The cells of the table under `HEADERS`: a line for each part that took time, then the sum and the clock."""
    whole = found.sum_s or 1.0
    lines = [line for line in found.lines if abs(line.s) >= 0.05]
    rows = [[line.name, _s(line.s), f"{line.s / whole:.1%}", _s(line.confirming_s)] for line in lines]
    rows.append(["sum", _s(found.sum_s), "100.0%", _s(found.confirming_s)])
    rows.append(["clock of the search", _s(found.clock_s), "", ""])
    if found.saved_s:
        rows.append(["saved, not in the sum", _s(found.saved_s), "", ""])
    if found.unknown_runs:
        rows.append([f"{UNKNOWN}, not in the sum", _s(found.unknown_s), "", ""])
    return rows


def hours_lines(found: Hours) -> list[str]:
    """What the table shows in sentences; empty without runs."""
    lines = []
    if found.runs:
        lines.append(
            f"where the time went: {_many(found.runs)} in {duration(found.run_s)}, of which {found.timed_share:.1%} is "
            f"timed decoding; confirmation took {duration(found.confirming_s)} of {duration(found.sum_s)}"
        )
        if not found.agrees:
            apart = found.sum_s - found.clock_s
            lines.append(f"the sum is {abs(apart):.1f} s {'above' if apart > 0 else 'below'} the clock of the search")
    if found.unknown_runs:
        lines.append(f"the time of {_many(found.unknown_runs)} in {duration(found.unknown_s)} is {UNKNOWN} by part")
    return lines


def hours_table(found: Hours) -> RenderableType:
    """Sentences and table for a terminal."""
    lines = [Text(line) for line in hours_lines(found)]
    if not found.runs:
        return Group(*lines)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in HEADERS:
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    for row in hours_rows(found):
        table.add_row(*row)
    return Group(*lines, Text(), table)


def _s(seconds: float) -> str:
    return f"{seconds:.1f}"


def _many(n: int) -> str:
    return f"{n} run{'' if n == 1 else 's'}"
