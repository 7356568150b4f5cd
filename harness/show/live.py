"""Live display of a session: a panel on a terminal, one line per run elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from engine import Knobs
from harness.analysis.counts import Progress, count, left_s
from harness.analysis.pareto import front
from harness.machine.quiet import about_waiting
from harness.results.metrics import SHORT, objectives_of
from harness.results.rows import frame
from harness.run.job import Job
from harness.study.study import Study

from .tables import front_table, trial_line
from .text import RESIDENT, clock, number, setting

Row = dict[str, Any]
MARGIN = 6  # lines of a table besides members: its head, the reference, the number of hidden rows, a warning


@contextlib.contextmanager
def display(study: Study) -> Iterator[Lines | Panel]:
    """The display for this standard output. At its end, a panel prints its headline and notes."""
    console = Console()
    if not console.is_terminal:
        yield Lines(study)
        return
    panel = Panel(study, console)
    try:
        # The alternate screen, because a resized terminal wraps and scrolls the lines of the normal one.
        with Live(get_renderable=panel.render, console=console, refresh_per_second=2, screen=True, redirect_stderr=False):
            yield panel
    finally:
        panel.leave()


class Lines:
    """One plain line per run, for logs."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._headline = f"{study.headline}\n"

    def note(self, text: str) -> None:
        print(f"{self._headline}note: {text}", flush=True)
        self._headline = ""

    def begin(self, job: Job, rows: list[Row], progress: Progress) -> None:
        print(end=self._headline, flush=True)
        self._headline = ""

    def end(self, row: Row, rows: list[Row], progress: Progress) -> None:
        names = [e.name for e in self._study.space.entries]
        line = trial_line(row, progress.trials_done, progress.trials_wanted, names)
        left = left_s(rows, progress.runs_left)
        if progress.confirming and left is not None:
            line += f"   ({progress.confirming}, {clock(left)} left)"
        print(line, flush=True)


class Panel:
    """Progress, the current run, time left, best speed and the front so far, within the terminal's size."""

    def __init__(self, study: Study, console: Console) -> None:
        self._study, self._console = study, console
        self._rows: list[Row] = []
        self._df = frame([])
        self._job: Job | None = None
        self._begun = self._start = time.monotonic()
        self._progress = Progress(0, study.trials)
        self._notes: list[str] = []
        self._best, self._size = "-", 0
        self._drawn: tuple[object, RenderableType] = None, Text("")

    def note(self, text: str) -> None:
        """Add a note. A note about waiting replaces earlier ones."""
        if about_waiting(text):
            self._notes = [n for n in self._notes if not about_waiting(n)]
        self._notes.append(text)

    def leave(self) -> None:
        """Print what stays on the screen after the panel: the headline and all notes."""
        for text in (self._study.headline, *(f"note: {n}" for n in self._notes)):
            self._console.print(text, markup=False, highlight=False)

    def begin(self, job: Job, rows: list[Row], progress: Progress) -> None:
        self._job, self._begun = job, time.monotonic()
        self._take(rows, progress)

    def end(self, row: Row, rows: list[Row], progress: Progress) -> None:
        self._job = None
        self._take(rows, progress)

    def render(self) -> RenderableType:
        """The panel at this moment. Rich calls it twice a second."""
        p = self._progress
        whole, done = (p.trials_wanted, p.trials_done) if p.confirm_most is None else (p.confirm_most, p.confirm_done)
        parts: list[RenderableType] = [
            _line(self._study.headline, "bold"),
            _line(f"{p}   {self._left()}"),
            Padding(ProgressBar(whole or 1, min(done or 0, whole or 1)), 0),  # a bar alone does not end its line
            _line(f"best {self._best}   front {self._size}{self._not_ok()}"),
        ]
        if self._job:
            parts.append(_line(self._now(self._job)))
        notes = [Text(f"note: {n}", style="italic").wrap(self._console, self._console.width)[:2] for n in self._notes[-2:]]
        parts += [line for note in notes for line in note]
        return Group(*parts, Text(""), self._table(self._console.height - len(parts) - 1))

    def _not_ok(self) -> str:
        counts = count(self._rows)
        by_status = {**counts.fates, **counts.not_run}
        return "".join(f"   {n} {status}" for status, n in by_status.items() if status != "ok")

    def _take(self, rows: list[Row], progress: Progress) -> None:
        self._rows, self._progress = list(rows), progress
        self._df = frame(self._rows)
        best = front(self._df, **self._study.rules)
        self._size = len(best)
        first = next(iter(objectives_of(self._df)))
        self._best = f"{number(best[first].iloc[0], 4)} {SHORT[first]}" if len(best) else "-"

    def _table(self, height: int) -> RenderableType:
        """The front in at most `height` lines. It is cached, because its intervals take time."""
        key = self._rows, self._console.width, height
        if self._drawn[0] != key:
            table: RenderableType = Text("the front appears after the first trials", style="dim")
            if self._size:
                table = front_table(self._df, self._console.width, most=max(1, height - MARGIN), **self._study.rules)
            self._drawn = key, table
        return self._drawn[1]

    def _now(self, job: Job) -> str:
        took = time.monotonic() - self._begun
        origin = job.origin or job.proposal.origin
        knobs = RESIDENT if origin == "reference" else self._setting(job)
        run = f" run {job.run}" if job.run else ""
        return f"trial {job.proposal.trial}{run} ({origin}, {took:.0f} s)  {knobs}"

    def _setting(self, job: Job) -> str:
        return setting(Knobs.from_mapping(job.proposal.values).as_dict(), [e.name for e in self._study.space.entries])

    def _left(self) -> str:
        """Time left at the pace of the last runs, at most the rest of budget.hours."""
        elapsed = time.monotonic() - self._start
        left, hours = left_s(self._rows, self._progress.runs_left), self._study.config["budget"]["hours"]
        limits = [left] if left is not None else []
        limits += [max(0.0, hours * 3600 - elapsed)] if hours else []
        return f"{clock(min(limits))} left" if limits else f"{clock(elapsed)} elapsed"


def _line(text: str, style: str = "") -> Text:
    return Text(text, overflow="ellipsis", no_wrap=True, style=style)
