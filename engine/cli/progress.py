"""Progress of a long command: a bar on a terminal, and a line of text every half minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.knobs import GB

LOG_SECONDS = 30  # between two lines in a log


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of the bytes done and the bytes in all, which shows speed and time left on stderr. It shows nothing before
    its first call."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield log_lines(what)
        return
    columns = TextColumn(what), BarColumn(None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)
    bar = Progress(*columns, console=console, expand=True)
    task = bar.add_task(what, total=None)

    def update(done: int, of: int) -> None:
        bar.update(task, completed=done, total=of)
        bar.start()

    try:
        yield update
    finally:
        bar.stop()


def log_lines(what: str, clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """A function of the bytes done and the bytes in all, which prints a line on stderr at most every `LOG_SECONDS`. The
    bytes of the first call, done by an earlier run, do not count for the speed."""
    begin = last = 0.0
    first = -1

    def update(done: int, of: int) -> None:
        nonlocal begin, last, first
        now = clock()
        if first < 0:
            begin, last, first = now, now, done
        if now - last >= LOG_SECONDS and done > first:
            speed, last = (done - first) / (now - begin), now
            figures = f"{done / GB:.1f} of {of / GB:.1f} GB, {speed / 1e6:.0f} MB/s, {(of - done) / speed / 60:.0f} min left"
            print(f"{what}: {figures}", file=sys.stderr, flush=True)

    return update
