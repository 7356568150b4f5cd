"""Metrics follow from the declared figures, and rows with different objectives are refused."""

from __future__ import annotations

import pytest
from synthetic import trials

from harness import ResultsError
from harness.results.metrics import METRICS, OBJECTIVES, PRIOR_NOISE, QUALITY, SPEEDS, objectives_of


def test_speeds_are_noisy_and_quality_is_not() -> None:
    assert set(SPEEDS) <= set(METRICS) and not set(SPEEDS) & set(QUALITY)
    assert all(PRIOR_NOISE[name] > 0 for name in SPEEDS)
    assert METRICS["decode_tok_s"] == "maximize" and METRICS["peak_memory_gb"] == "minimize"


def test_objectives_are_those_of_the_rows() -> None:
    df = trials((1, 1, 1), (2, 2, 2))
    assert objectives_of(df) == OBJECTIVES
    other = objectives_of(df.assign(objectives="perplexity,decode_tok_s"))
    assert other == {"perplexity": "minimize", "decode_tok_s": "maximize"}
    with pytest.raises(ResultsError, match=r"different objectives \(decode_tok_s; kl\) are not comparable"):
        objectives_of(df.assign(objectives=["kl", "decode_tok_s"]))
