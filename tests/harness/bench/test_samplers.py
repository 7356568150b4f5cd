"""Benchmark of samplers: infeasible trials cost few others, failed ones many."""

from __future__ import annotations

import pytest

from harness.bench import __main__ as bench
from harness.bench.samplers import CONTENDERS, search


def test_infeasible_trials_repel_the_sampler_and_failed_ones_do_not() -> None:
    failed = search(CONTENDERS["plain-tpe"], 0, 40, 0.04, limit=36.0, tell="fail")
    ours = search(CONTENDERS["tpe"], 0, 40, 0.04, limit=36.0)
    assert ours["lost"] <= 12 < failed["lost"]
    assert 0.2 < ours["share"][40] <= 1.01


def test_an_unknown_sampler_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["samplers", "--samplers", "bayes"]) == 2
    assert capsys.readouterr().err == "error: --samplers bayes is unknown; choose one of: " + ", ".join(CONTENDERS) + "\n"
