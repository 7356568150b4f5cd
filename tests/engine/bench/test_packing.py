"""Tests of `bench pack`: every layout is packed, and a store is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import CheckpointError
from engine.bench import packing


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROWS": 128, "COLUMNS": 256, "POOL": 1 << 14, "TOKENS": 4}.items():
        monkeypatch.setattr(packing, name, value)


def test_every_layout_is_packed(checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    result = packing.bench_pack(checkpoint("qwen3_moe", 4), rounds=1, mib=0)
    json.dumps(result)
    assert [row["source"] for row in result["rows"]] == list(packing.SOURCES)
    assert all(row["pack_mb_s"][1] > 0 and row["mb"] > 0.2 for row in result["rows"])
    assert result["verify"]["read_mb_per_token"] > 0 and "verify_reads" in capsys.readouterr().out


def test_a_store_is_refused(store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SOURCES", {})
    with pytest.raises(CheckpointError, match="is a packed store; give the checkpoint that it was made from"):
        packing.bench_pack(store("qwen3_moe", 4), rounds=1, mib=0)
