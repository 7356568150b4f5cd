"""Soak test, small: each fault and each event at least once, after which every trial is accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bench.soak.soak import soak


@pytest.mark.slow
def test_a_small_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, found = soak(12, tmp_path / "soak", seed=3)
    assert [name for name, violation in found if violation] == [], found
    assert sum(event == "kill -9" for event, _, _ in one.ends) >= 3
    printed = capsys.readouterr().out
    assert "exit statuses" in printed and "\nsilence " in printed
