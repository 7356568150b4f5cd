"""bench lossy: one row per setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main

Capture = pytest.CaptureFixture[str]


def test_bench_lossy_has_a_row_a_setting(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [{}, {"cold_drop": 1.0}, {"cache_prior": 1.0}, {"top_k": 2}, {"resident_bits": 3}]
    monkeypatch.setattr("engine.bench.quality.lossy.settings", lambda top_k: settings)
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    path = str(checkpoint("deepseek_v3", None, True))
    assert main(["bench", "lossy", path, "--judge", str(tmp_path / "mine.txt"), "--prefill-chunk", "32"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    none, drop, prior, narrow, bits = result["rows"]
    assert result["knobs"]["prefill_chunk"] == 32 and result["cached_share"] == pytest.approx(0.25)
    assert drop["dropped_share"] > 0 == none["dropped_share"] and prior["swapped_share"] > 0 == none["swapped_share"]
    assert max(r["read_mb_per_token"] for r in (drop, prior, narrow)) < none["read_mb_per_token"]
    assert none["nll_more"] == 0 and all(r["nll_more"] != 0 for r in (drop, prior, narrow, bits))
