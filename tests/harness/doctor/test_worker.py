"""Worker: the order of the checks, and a run of the cheap ones in a real process."""

from __future__ import annotations

from pathlib import Path

from harness.doctor.check import WORKS
from harness.doctor.examine import examine
from harness.doctor.worker import checks


def test_checks_have_names_of_their_own_and_come_in_groups() -> None:
    listed = checks()
    assert len({(c.group, c.name) for c in listed}) == len(listed)
    assert list(dict.fromkeys(c.group for c in listed)) == ["machine", "limits", "meters", "calls", "disk", "compute"]


def test_the_real_worker(tmp_path: Path) -> None:
    results = examine(tmp_path, all_checks=checks()[:3])
    assert [r.state for r in results] == [WORKS] * 3 and results[2].figures["headrace"]
