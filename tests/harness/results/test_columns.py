"""The columns cover all knobs and figures, and their documentation is current."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from stored import row

from engine import Knobs, Measurement
from engine.system.shipped import ROOT
from harness.results.columns import COLUMNS, NAMES, TOKEN_COLUMNS, markdown, row_from_json, row_to_json
from harness.results.older import renamed_markdown


def test_all_knobs_and_figures_have_columns() -> None:
    assert set(Knobs.names()) <= set(NAMES)
    figures = {f.name for f in dataclasses.fields(Measurement)} - {"token_ms", "token_nll", "ended_early", "scoring_stopped"}
    assert figures == set(Measurement.names()) == set(Measurement(1.0, 1.0, None).as_dict()) and figures <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    assert all(c.text for c in COLUMNS)


def test_the_documented_columns_are_current() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert markdown() in text, "run python -m harness.results.columns"
    assert markdown(TOKEN_COLUMNS) in text, "run python -m harness.results.columns"
    assert renamed_markdown() in text, "run python -m harness.results.columns"


def test_a_row_survives_the_storage_as_text() -> None:
    written = row(3, expert_bits=4, feasible=False, started_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))
    assert row_from_json(row_to_json(written)) == written
