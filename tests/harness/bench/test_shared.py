"""Benchmark of a shared study: its engine waits, and bad arguments are one line."""

from __future__ import annotations

import time

import pytest

from engine import Knobs
from harness.bench.__main__ import main
from harness.bench.shared import WAIT, Waiting


def test_the_engine_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT, "0.05")
    begin = time.monotonic()
    found = Waiting.load("checkpoint", Knobs(cache_gb=2.0, expert_bits=4)).measure(None)
    assert time.monotonic() - begin >= 0.05 and (found.decode_tok_s, found.peak_memory_gb) == (12.0, 2.1)


def test_one_worker_is_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shared", "--workers", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
