"""bench pack: every layout is packed, and verify_reads is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bench import packing


def test_bench_pack_packs_every_layout(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing, "ROWS", 128)
    monkeypatch.setattr(packing, "COLUMNS", 256)
    monkeypatch.setattr(packing, "POOL", 1 << 14)
    monkeypatch.setattr(packing, "TOKENS", 4)
    result = packing.bench_pack(checkpoint("qwen3_moe", 4), rounds=2, mib=0)
    assert [row["source"] for row in result["rows"]] == list(packing.SOURCES)
    assert all(row["pack_mb_s"][1] > 0 and row["mb"] > 0.2 for row in result["rows"])
    assert result["verify"]["read_mb_per_token"] > 0 and "verify_reads" in capsys.readouterr().out
