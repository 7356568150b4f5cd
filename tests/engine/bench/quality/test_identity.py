"""Tests of `bench identity`: nothing differs on the CPU, a difference shows, and what a model refuses is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models_table import configuration
from tiny import make

from engine.__main__ import main
from engine.bench.quality import identity as module

SHORT = ("--prompt", "12", "--tokens", "4")


def test_nothing_differs(checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "identity", str(checkpoint("qwen3_moe")), *SHORT, "--cached", "0.5", "--io-mode", "direct"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["bench"] == "identity" and found["prompt_tokens"] == 12 and found["scale"] > 0
    assert found["knobs"] == {"io_mode": "direct"}
    settings = [(row["setting"], row["cached"]) for row in found["rows"][2:]]
    assert settings == [("sync_window=1", 0.5), ("sync_window=all", 0.5), ("prefetch=stale_gate", 0.5)]
    assert all(row["single"] == 0 and row["refused"] is None for row in found["rows"])
    assert sum(line.startswith("50.0% cached") for line in lines) == 3


def test_a_difference_shows_and_a_refused_setting_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "hunyuan", "hunyuan", config=configuration("hunyuan"))
    own, calls = module._logits, [0]

    def other(*given: object, **more: object) -> module.Logits:
        prompt, single = own(*given, **more)  # type: ignore[arg-type]
        calls[0] += 1
        return (prompt, single + np.float32(0.5)) if calls[0] == 4 else (prompt, single)

    monkeypatch.setattr(module, "_logits", other)
    found = module.bench_identity(path, {}, [0.5], prompt=12, tokens=4)
    assert [row["single"] for row in found["rows"] if not row["refused"]] == [0, 0, pytest.approx(0.5)]
    assert ["chain" in str(row["refused"]) for row in found["rows"]] == [False, False, False, True, False]
    assert "experts ahead of time" in found["rows"][-1]["refused"] and "chain" in capsys.readouterr().out
