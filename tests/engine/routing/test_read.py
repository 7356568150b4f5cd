"""Tests of reading traces: what was written is read, and damaged files are errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from traces import routing, write_trace

from engine import HeadraceError
from engine.routing.read import read_trace


def test_a_trace_is_read_as_written(tmp_path: Path) -> None:
    experts = routing(20, 3, 2, 8)
    trace = read_trace(write_trace(tmp_path / "t.parquet", experts, prefilled=5))
    assert np.array_equal(trace.experts, experts) and trace.prefilled == 5


@pytest.mark.parametrize("damage", ["missing", "double", "none", "not parquet"])
def test_bad_traces(tmp_path: Path, damage: str) -> None:
    file = write_trace(tmp_path / "t.parquet", routing(20, 3, 2, 8))
    if damage == "not parquet":
        file.write_text("token,layer")
    elif damage == "none":
        file.unlink()
    else:
        rows = pd.read_parquet(file)
        rows.drop(index=7).to_parquet(file) if damage == "missing" else rows.assign(expert=1).to_parquet(file)
    with pytest.raises(HeadraceError, match=r"trace .*t\.parquet") as e:
        read_trace(file)
    assert "\n" not in str(e.value)
