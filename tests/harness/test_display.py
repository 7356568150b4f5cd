"""What is seen on a terminal: it fits the width, and what matters is said in words."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from conftest import arguments
from rich.console import Console
from test_front import FIVE

from harness.tables import front_table, number, trial_line


def shown(width: int, **options: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    df = FIVE.assign(cache_gb=[4.0, 1, 2, 2, 3], read_threads=[1, 2, 4, 4, 8], io_mode="direct", hit_rate=0.5)
    df.loc[3, "origin"] = "reference"
    console.print(front_table(df, width, **options))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_front_fits_and_names_knee_and_reference(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[2:7]] == ["1", "3", "2", "5", "4"]
    assert "◆ knee" in lines[3]
    assert "reference" in lines[6]
    text = "\n".join(lines)
    assert "io_mode" not in text  # it does not vary
    assert ("cache_gb=4 read_threads=1" in text) == (width == 60)


def test_a_live_view_is_cut() -> None:
    lines = shown(80, most=2)
    assert lines[-1].strip() == "… and 2 more"
    assert len(lines) == 6


def test_numbers_are_short() -> None:
    assert [number(v) for v in (None, float("nan"), 0.012345, 12.345, 123456.0, 7, "x")] == [
        "-", "-", "0.0123", "12.3", "123456", "7", "x",
    ]  # fmt: skip


def test_a_failed_trial_says_why_in_its_line() -> None:
    row = {**FIVE.iloc[0].to_dict(), "status": "oom", "status_reason": "9 GB are above the limit of 8 GB"}
    assert "oom        9 GB are above the limit of 8 GB" in trial_line(row, 1, 24, ["cache_gb"])


def test_on_a_terminal_the_panel_shows_progress(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pexpect = pytest.importorskip("pexpect")
    command = ["-m", "harness.search", *arguments(place, "budget.trials=3", "study.name=shown")]
    child = pexpect.spawn(sys.executable, command, dimensions=(30, 80), timeout=150, encoding="utf-8")
    child.expect(pexpect.EOF)  # which frames a busy machine has time to draw is chance; these parts are in some frame
    shown = child.before
    for part in (r"[0-3] of 3 trials", r"left", r"3 trials \(ok\), reference measured", r"knee", r"front\.png"):
        assert re.search(part, shown), part
    child.close()
    assert child.exitstatus == 0
