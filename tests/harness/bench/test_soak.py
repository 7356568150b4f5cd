"""The soak, small: each fault and each event once or more, then every trial accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bench.soak import soak


@pytest.mark.slow
def test_a_night_of_faults(tmp_path: Path) -> None:
    one, found = soak(12, tmp_path / "night", seed=3)
    assert [name for name, wrong in found if wrong] == [], found
    assert sum(event == "kill -9" for event, _, _ in one.ends) >= 3
