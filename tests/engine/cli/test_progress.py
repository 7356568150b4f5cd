"""Progress in a log: a line every half minute, with the speed of this run alone."""

from __future__ import annotations

import pytest

from engine.cli.progress import LOG_SECONDS, log_lines


def test_a_line_is_printed_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    update = log_lines("packing", lambda: now[0])
    update(4_000_000_000, 10_000_000_000)  # done by an earlier run
    now[0] += LOG_SECONDS - 1
    update(5_000_000_000, 10_000_000_000)
    assert capsys.readouterr().err == ""
    now[0] += 1
    update(7_000_000_000, 10_000_000_000)
    assert capsys.readouterr().err == "packing: 7.0 of 10.0 GB, 100 MB/s, 0 min left\n"
    update(7_000_000_000, 10_000_000_000)
    assert capsys.readouterr().err == ""
