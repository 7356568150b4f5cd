"""A copy of a published study, for tests that read or change it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import ROOT

from harness.analysis.pareto import Analysis
from harness.decisions.recommend import rules_of
from harness.results.rows import read_trials


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study, `results/demo` in a folder of its own."""
    place = tmp_path_factory.mktemp("published") / "results" / "demo"
    shutil.copytree(ROOT / "results" / "published" / "demo_ssd_0.1", place)
    shutil.rmtree(place / "best", ignore_errors=True)
    return place


@pytest.fixture(scope="package")
def found(demo: Path) -> Analysis:
    """The analysis of its rows."""
    return Analysis(read_trials(demo), **rules_of(demo))
