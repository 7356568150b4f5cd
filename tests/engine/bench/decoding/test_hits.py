"""bench hits: no expert is missing while the overhead is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main

Capture = pytest.CaptureFixture[str]


def test_the_bench_of_hits_has_none_missing(checkpoint: Callable[..., Path], capsys: Capture) -> None:
    assert main(["bench", "hits", str(checkpoint("deepseek_v3", None, True)), "--rounds", "2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["misses"] == 0 and result["us_per_layer"][1] > 0 and result["layers"] == 3
