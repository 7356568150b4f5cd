"""Time budget as text: a line for each part that took time, the sum, the clock, and what is not in the sum."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from stored import row

from harness.analysis.runs.hours import Hours, hours
from harness.show.hours import HEADERS, hours_lines, hours_rows, hours_table

RUN = {"session": "a", "between_s": 2.0, "wall_s": 8.0, "timed_s": 4.0, "score_s": 3.0, "saved_s": 30.0, "session_s": 10.0}


def shown(found: Hours) -> str:
    out = StringIO()
    Console(file=out, width=80).print(hours_table(found))
    return out.getvalue()


def test_lines_sum_and_clock() -> None:
    found = hours([row(1, **RUN), row(1, run=1, **{**RUN, "origin": "confirm", "session_s": 20.0})])
    cells = {line[0]: line[1:] for line in hours_rows(found)}
    assert cells == {
        "timing": ["8.0", "40.0%", "4.0"], "scoring": ["6.0", "30.0%", "3.0"], "not attributed": ["2.0", "10.0%", "1.0"],
        "between runs": ["4.0", "20.0%", "2.0"], "sum": ["20.0", "100.0%", "10.0"], "clock of the search": ["20.0", "", ""],
        "saved, not in the sum": ["60.0", "", ""],
    }  # fmt: skip
    assert hours_lines(found) == [
        "where the time went: 2 runs in 16 s, of which 50.0% is timed decoding; confirmation took 10 s of 20 s"
    ]
    assert all(word in shown(found) for word in (*HEADERS, "timing", "clock of the search"))
    assert max(map(len, shown(found).splitlines()[2:])) <= 80


def test_a_difference_from_the_clock_is_said() -> None:
    assert "10.0 s below the clock" in hours_lines(hours([row(1, **{**RUN, "session_s": 20.0})]))[1]
    assert "5.0 s above the clock" in hours_lines(hours([row(1, **{**RUN, "session_s": 5.0})]))[1]


def test_older_rows_have_no_table() -> None:
    found = hours([row(1, wall_s=90.0)])
    assert hours_lines(found) == ["the time of 1 run in 1.5 min is not recorded by part"]
    assert shown(found).strip() == hours_lines(found)[0]
    assert hours_lines(hours([])) == [] and shown(hours([])).strip() == ""
    mixed = hours([row(1, wall_s=90.0), row(2, **RUN)])
    assert ["not recorded, not in the sum", "90.0", "", ""] in hours_rows(mixed)
