"""Constraints and objectives: their form, rejected ones, and the excess for a sampler."""

from __future__ import annotations

import pytest

from harness import ConfigError
from harness.study.constraints import (
    check_constraints,
    checked,
    constraints_from_config,
    objectives_from_config,
    parse,
)


@pytest.mark.parametrize(
    ("text", "value", "reference", "excess"),
    [
        ("peak_memory_gb <= 80", 88.0, None, 0.1),
        ("peak_memory_gb<=80", 72.0, None, -0.1),
        ("json_valid >= 0.95", 0.9025, None, 0.05),
        ("perplexity <= 1.02 * reference", 10.71, {"perplexity": 10.0}, 0.05),
        ("perplexity <= reference * 1.02", 10.2, {"perplexity": 10.0}, 0.0),
        ("decode_tok_s >= reference", 5.0, {"decode_tok_s": 10.0}, 0.5),
        ("kl <= 0", 0.25, None, 0.25),
        ("perplexity <= 1.02 * reference", 10.0, {"perplexity": None}, None),
        ("perplexity <= 20", None, None, None),
        ("perplexity <= 20", float("nan"), None, None),
    ],
)
def test_excess_is_a_share_of_the_bound(text: str, value: float, reference: dict | None, excess: float | None) -> None:
    found = parse(text).excess(value, reference)
    assert found is None if excess is None else found == pytest.approx(excess, abs=1e-9)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["perplexity"], "constraint 'perplexity' cannot be read"),
        (["perplexity < 3"], "cannot be read"),
        (["perplexity <= 1.2.3"], "cannot be read"),
        (["perplexty <= 3"], "perplexty is not measured; did you mean perplexity?"),
        (["watts <= 3"], "watts is not measured"),
        (["json_valid >= 0.9"], "set quality.json_prompts=FILE"),
        (["peak_memory_gb <= 3", "peak_memory_gb >= 4"], "cannot both hold"),
    ],
)
def test_mistakes(texts: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")) as e:
        constraints_from_config(texts, None)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("names", [["decode_tok_s"], ["decode_tok_s"] * 2, ["decode_tok_s", "speed"], ["kl"] * 4])
def test_objectives_are_two_or_three_metrics(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="objectives"):
        objectives_from_config(names)


def test_objectives_have_their_directions() -> None:
    assert objectives_from_config(["prefill_tok_s", "kl"]) == {"prefill_tok_s": "maximize", "kl": "minimize"}


def test_a_perplexity_in_an_interval_is_judged_at_both_ends() -> None:
    constraints = [parse("perplexity <= 1.02 * reference"), parse("peak_memory_gb <= 2")]

    def of(low: float, high: float, gb: float = 1.0) -> tuple[bool | None, str | None]:
        row = {"perplexity": None, "peak_memory_gb": gb, "scoring_stopped": "why", "perplexity_at_least": low}
        return checked(constraints, {**row, "perplexity_at_most": high}, {"perplexity": 10.0})

    assert of(9.0, 10.1) == (True, None)
    assert of(10.3, 12.0) == (False, "perplexity <= 1.02 * reference (10.3)")
    assert of(10.0, 12.0) == (None, None)
    assert of(10.0, 12.0, gb=3.0) == (False, "peak_memory_gb <= 2 (3)")
    complete = {"perplexity": 10.1, "peak_memory_gb": 1.0, "scoring_stopped": None}
    assert checked(constraints, complete, {"perplexity": 10.0}) == (True, None)


def test_a_row_is_judged_by_what_is_known() -> None:
    both = constraints_from_config(["peak_memory_gb <= 2", "perplexity <= 1.1 * reference"], None)
    figures = {"peak_memory_gb": 1.0, "perplexity": 12.0}
    assert check_constraints(both, figures, {"perplexity": 11.0}) == (True, None)
    assert check_constraints(both, figures, {"perplexity": 10.0}) == (False, "perplexity <= 1.1 * reference (12)")
    assert check_constraints(both, figures, None) == (None, None)
    assert check_constraints(both, {**figures, "peak_memory_gb": 3.0}, None) == (False, "peak_memory_gb <= 2 (3)")
    assert check_constraints((), figures, None) == (True, None)
