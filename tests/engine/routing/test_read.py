"""Read: traces are read as they were written, and incomplete ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine import HeadraceError
from engine.routing.read import read_trace


def routing(tokens: int, layers: int, top_k: int, experts: int) -> np.ndarray:
    """Expert ids with some locality: every token keeps about half of its predecessor's experts."""
    rng = np.random.default_rng(1)
    out = np.empty((tokens, layers, top_k), np.int32)
    for layer in range(layers):
        current = rng.permutation(experts)[:top_k]
        for token in range(tokens):
            if token % 2:
                current = rng.permutation(experts)[:top_k]
            out[token, layer] = current
    return out


def write(path: Path, experts: np.ndarray, prefilled: int = 0) -> Path:
    token, layer, rank = (a.reshape(-1) for a in np.indices(experts.shape))
    phase = np.where(token < prefilled, "prefill", "decode")
    columns = {"token": token, "phase": phase, "layer": layer, "rank": rank, "expert": experts.reshape(-1)}
    pd.DataFrame(columns).astype({"token": "int32", "expert": "int16"}).to_parquet(path)
    return path


def test_a_trace_is_read_as_written(tmp_path: Path) -> None:
    experts = routing(20, 3, 2, 8)
    trace = read_trace(write(tmp_path / "t.parquet", experts, prefilled=5))
    assert np.array_equal(trace.experts, experts) and trace.prefilled == 5


@pytest.mark.parametrize("damage", ["missing", "double", "none", "not parquet"])
def test_bad_traces(tmp_path: Path, damage: str) -> None:
    file = write(tmp_path / "t.parquet", routing(20, 3, 2, 8))
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
