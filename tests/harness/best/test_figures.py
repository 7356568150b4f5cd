"""Figures: those of the estimates, which tables and plots show, with the spread of one further run."""

from __future__ import annotations

import math

from harness.analysis.estimates import estimates, noise
from harness.analysis.pareto import Analysis
from harness.best.figures import figures_of
from harness.numerics.student_t import t_quantile
from harness.show.text import with_interval


def test_figures_are_those_of_the_estimates(found: Analysis) -> None:
    every = estimates(found.df)
    for _, point in every.iterrows():
        figures = figures_of(found, point)
        for name, figure in figures.items():
            for end, given in figure.items():
                if end != "noise":
                    assert math.isclose(given, point[f"{name}_{end}".removesuffix("_value")], rel_tol=1e-7)
            assert figure["low"] <= figure["value"] <= figure["high"]
    first = figures_of(found, every.loc[3])["decode_tok_s"]
    assert with_interval(every.loc[3], "decode_tok_s") == f"{first['value']:.1f} ±{(first['high'] - first['low']) / 2:.1f}"
    spread = noise(found.df).loc["decode_tok_s"]
    run = t_quantile(0.975, spread["degrees"]) * spread["sd"]
    assert math.isclose(math.log1p(figures_of(found, every.loc[3])["decode_tok_s"]["noise"]), run, rel_tol=1e-6)
    assert figures_of(found, every.loc[3])["perplexity"]["noise"] == 0, "it does not vary"
