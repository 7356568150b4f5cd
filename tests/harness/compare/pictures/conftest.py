"""Sides of two studies, read once."""

from __future__ import annotations

import pytest
from two_studies import study

from harness.compare.sides import Side, read_sides


@pytest.fixture(scope="package")
def sides(tmp_path_factory: pytest.TempPathFactory) -> list[Side]:
    place = tmp_path_factory.mktemp("studies")
    return read_sides([study(place / "a", 0), study(place / "b", 1, factor=1.5, ssd_gbps=0.3)])
