"""Live display: the panel fits the screen and shows progress, notes and the front."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support import arguments
from synthetic import trials

from harness.analysis.counts import Progress
from harness.show.live import Panel


def panel(width: int, height: int, rows: int = 12) -> Panel:
    """The panel of a study in which each trial has a run, and two of twelve crashed."""
    rules = {"runs": 2, "within": 0.05, "error": 0.03}
    study: Any = SimpleNamespace(
        headline="n" * 99, config={"budget": {"hours": None}}, rules=rules, trials=rows, space=SimpleNamespace(entries=[])
    )
    shown = Panel(study, Console(width=width, height=height, file=io.StringIO(), force_terminal=True))
    df = trials(*((10.0 + i, 1.0 + i, 9.0) for i in range(rows)), cache_gb=[0.1 + i for i in range(rows)])
    df["status"] = ["crash" if i in (3, 4) else "ok" for i in range(rows)]
    some = df.assign(run=0, wall_s=30.0, waited_s=0.0, started_at=range(1, rows + 1)).to_dict("records")
    shown.end(some[-1], some, Progress(rows, rows, 1, 5, 6, runs_left=2))
    return shown


def lines_of(shown: Panel, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO())
    shown._console = console
    console.print(shown.render())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (60, 18)])
def test_the_panel_keeps_within_the_screen_and_shows_the_front(width: int, height: int) -> None:
    shown = panel(width, height)
    for i in range(17):
        shown.note(f"waiting for a quiet machine, 600 s at most: other processes keep {i} of 8 cores busy, above 4")
        shown.note(f"quiet again after {i} s")
    shown.note("refused from the proposer: " + "a long reason " * 30)
    for w, h in ((width, height), (100, 30), (width, height)):  # resized, and back
        lines = lines_of(shown, w, h)
        assert len(lines) <= h and max(map(len, lines)) <= w
        text = "\n".join(lines)
        assert "12 of 12 trials, confirming 5 of at most 6   1:00 left" in text
        assert "2 crash" in text and "best 21 tok/s" in lines[3] and "quiet again after 16 s" in text
        assert "waiting for" not in text and "quiet again after 15" not in text
        assert sum(line.split()[:1] in (["12"], ["11"]) for line in lines[4:]) == 2  # the best two of the front at least


def test_on_a_terminal_the_panel_shows_progress(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pexpect = pytest.importorskip("pexpect")
    command = ["-m", "harness.search", *arguments(place, "budget.trials=1", "study.name=shown")]
    child = pexpect.spawn(sys.executable, command, dimensions=(30, 80), timeout=150, encoding="utf-8")
    child.expect(pexpect.EOF)  # which frames a busy machine has time to draw is chance; these parts are in some frame
    shown = child.before
    for part in (r"[01] of 1 trials?", r"left", r"1 trial \(ok\), reference measured", r"recommended", r"front\.png"):
        assert re.search(part, shown), part
    child.close()
    assert child.exitstatus == 0
