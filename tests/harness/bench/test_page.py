"""The benchmark of the report: its figures, for a study that is small."""

from __future__ import annotations

import json

import pytest

from harness.bench.__main__ import main


def test_times_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["page", "--trials", "30"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trials"] == 30 and found["report_s"] > 0 and found["page_s"] > 0 and 4.8 < found["page_mb"] < 8
