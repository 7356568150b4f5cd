"""Routing profile: summed up from a trace; foreign traces and damaged files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import Checkpoint, HeadraceError, load
from engine.routing.profile import Profile

Make = Callable[..., Path]
TOKENS = [int(i) for i in np.random.default_rng(7).integers(0, 255, 40)]


@pytest.fixture(scope="module")
def source(checkpoint: Make) -> Checkpoint:
    """deepseek_v3 in bf16: 3 layers of 16 experts, top-4, three projections of 2048 weights."""
    return Checkpoint.open(checkpoint("deepseek_v3", None, True))


def _edit(path: Path, edit: Callable[[Any, dict[bytes, bytes]], tuple[Any, dict[bytes, bytes]]]) -> None:
    rows, metadata = edit(pq.read_table(path).to_pandas(), dict(pq.read_schema(path).metadata))
    table = pa.Table.from_pandas(rows, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_profile_of_a_trace(source: Checkpoint, tmp_path: Path) -> None:
    with load(source.path) as engine, engine.trace(tmp_path / "t"):
        engine.logits(TOKENS)
    rows = pq.read_table(tmp_path / "t").to_pandas()
    profile = Profile.of_trace(tmp_path / "t", source)
    one = rows[(rows.layer == 1) & (rows.expert == int(rows[rows.layer == 1].expert.iloc[0]))]
    expert = int(one.expert.iloc[0])
    assert profile.uses[1, expert] == len(one) and profile.uses.sum() == len(rows)
    _edit(tmp_path / "t", lambda rows, said: (rows.assign(layer=rows.layer + 1), said))  # the model's own numbers
    assert Profile.of_trace(tmp_path / "t", source).fingerprint == profile.fingerprint


@pytest.mark.parametrize(
    "edit",
    [
        lambda rows, said: (rows[rows.layer > 0].assign(layer=rows.layer + 1), {}),
        lambda rows, said: (pd.concat([rows, rows.assign(layer=3)]), {}),
        lambda rows, said: (rows.assign(expert=rows.expert + 1), said),
        lambda rows, said: (rows.assign(expert=-1), said),
        lambda rows, said: (rows, {**said, b"num_experts": b"128"}),
        lambda rows, said: (rows.iloc[:0], said),
    ],
)
def test_a_trace_of_another_model_is_refused(source: Checkpoint, tmp_path: Path, edit: Any) -> None:
    with load(source.path) as engine, engine.trace(tmp_path / "t"):
        engine.logits(TOKENS)
    _edit(tmp_path / "t", edit)
    with pytest.raises(HeadraceError, match=r"but .* has 3 of 16; record it on this model"):
        Profile.of_trace(tmp_path / "t", source)


def test_a_damaged_profile_is_named(source: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from engine.routing.profile import profile_file, routing_profile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile_file(source).parent.mkdir()
    profile_file(source).write_bytes(b"PK\x03\x04 what is left of it")
    with pytest.raises(HeadraceError, match=r"routing profile .* is damaged .*; remove it"):
        routing_profile(source)
