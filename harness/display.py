"""What is seen while a study runs: a live panel on a terminal, else one line a trial."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine import Knobs

from .columns import SHORT, objectives_of
from .front import front
from .known import tried
from .plan import Plan
from .runner import Job
from .tables import RESIDENT, frame, front_table, number, setting, trial_line

Row = dict[str, Any]


@contextlib.contextmanager
def display(plan: Plan) -> Iterator[Lines | Panel]:
    """The watcher that suits the standard output."""
    console = Console()
    if not console.is_terminal:
        yield Lines(plan)
        return
    panel = Panel(plan, console)
    with Live(get_renderable=panel.render, console=console, refresh_per_second=2, transient=True):
        yield panel
    panel.leave()


class Lines:
    """One plain line a trial, for logs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._headline = f"{plan.headline}\n"

    def note(self, text: str) -> None:
        print(f"{self._headline}note: {text}", flush=True)
        self._headline = ""

    def begin(self, job: Job, rows: list[Row]) -> None:
        print(end=self._headline, flush=True)
        self._headline = ""

    def end(self, row: Row, rows: list[Row]) -> None:
        names = [e.name for e in self._plan.space.entries]
        print(trial_line(row, tried(rows), self._plan.trials, names), flush=True)


class Panel:
    """Progress, the trial that runs, time left, best speed and the front so far."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._rows: list[Row] = []
        self._job: Job | None = None
        self._begun = self._start = time.monotonic()
        self._done_here = 0
        self._notes: list[str] = []
        self._table: RenderableType = Text("")
        self._best, self._size = "-", 0

    def note(self, text: str) -> None:
        self._notes.append(text)

    def leave(self) -> None:
        """What stays on the screen when the panel goes."""
        for text in (self._plan.headline, *(f"note: {n}" for n in self._notes)):
            self._console.print(text, markup=False, highlight=False)

    def begin(self, job: Job, rows: list[Row]) -> None:
        self._job, self._begun = job, time.monotonic()
        self._take(rows)

    def end(self, row: Row, rows: list[Row]) -> None:
        self._job = None
        self._done_here += 1
        self._take(rows)

    def render(self) -> RenderableType:
        """The panel as of now; Rich asks for it twice a second."""
        plan, done = self._plan, tried(self._rows)
        bar = Table.grid(expand=True, padding=(0, 1, 0, 0))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(ProgressBar(plan.trials, min(done, plan.trials)), f"{done}/{plan.trials} trials   {self._left()}")
        parts: list[RenderableType] = [Text(plan.headline, overflow="ellipsis", no_wrap=True, style="bold"), bar]
        bad = {r["status"] for r in self._rows} - {"ok"}
        counts = "".join(f"   {sum(r['status'] == s for r in self._rows)} {s}" for s in sorted(bad))
        parts.append(Text(f"best {self._best}   front {self._size}{counts}", no_wrap=True, overflow="ellipsis"))
        if self._job:
            parts.append(Text(self._now(self._job), no_wrap=True, overflow="ellipsis"))
        parts += [Text(f"note: {n}", style="italic") for n in self._notes]
        return Group(*parts, Text(""), self._table)

    def _take(self, rows: list[Row]) -> None:
        self._rows = list(rows)
        df = frame(self._rows)
        rules = self._plan.rules
        best = front(df, **rules)
        self._size = len(best)
        first = next(iter(objectives_of(df)))
        self._best = f"{number(best[first].iloc[0], 4)} {SHORT[first]}" if len(best) else "-"
        room = max(3, self._console.height - 12)
        self._table = (
            front_table(df, self._console.width, most=room, **rules)
            if len(best)
            else Text("the front appears with the first trials", style="dim")
        )

    def _now(self, job: Job) -> str:
        took = time.monotonic() - self._begun
        origin = job.origin or job.proposal.origin
        what = RESIDENT if origin == "reference" else self._setting(job)
        run = f" run {job.run}" if job.run else ""
        return f"trial {job.proposal.trial}{run} ({origin}, {took:.0f} s)  {what}"

    def _setting(self, job: Job) -> str:
        return setting(Knobs.from_mapping(job.proposal.values).as_dict(), [e.name for e in self._plan.space.entries])

    def _left(self) -> str:
        """Time left at the pace of this run, within budget.hours."""
        elapsed = time.monotonic() - self._start
        if not self._done_here:
            return f"{clock(elapsed)} elapsed"
        left = elapsed / self._done_here * max(0, self._plan.trials - tried(self._rows))
        hours = self._plan.config["budget"]["hours"]
        if hours:
            left = min(left, max(0.0, hours * 3600 - elapsed))
        return f"{clock(left)} left"


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
