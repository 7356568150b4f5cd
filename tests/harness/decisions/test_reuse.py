"""Reuse: the quality of a lossy setting, the rival that a setting must beat, and memory that ran out before."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from engine import Knobs
from harness.decisions.reuse import (
    quality_source,
    reference_figures,
    rival,
    settings_of,
    settled_source,
    too_large,
    typical_s,
    wrong_answer,
)
from harness.results.columns import NAMES
from harness.study.constraints import Constraint, parse


def row(trial: int, knobs: dict[str, Any], **values: Any) -> dict[str, Any]:
    given = {"trial": trial, "run": 0, "origin": "sampler", "status": "ok", "perplexity": 17.0, "timed_nll": 2.8,
             "decode_tok_s": 10.0, "wall_s": 10.0}  # fmt: skip
    return {**dict.fromkeys(NAMES), **Knobs.from_mapping(knobs).as_dict(), **given, **values}


def test_quality_belongs_to_the_lossy_setting() -> None:
    rows = [
        row(0, {}, origin="reference"),
        row(1, {"cache_gb": 0.01, "expert_bits": 4}, status="oom", perplexity=None),
        row(2, {"cache_gb": 0.01, "expert_bits": 4}),
        row(3, {"cache_gb": 0.02, "expert_bits": 4}, quality_from_trial=2),
        row(4, {"cache_gb": 0.01, "cache_prior": 0.5}),
    ]

    def source(**knobs: Any) -> int | None:
        found = quality_source(rows, knobs)
        return None if found is None else found["trial"]

    assert source(cache_gb=0.5, read_threads=2) == 0
    assert source(cache_gb=0.5, expert_bits=4, io_mode="direct") == 2
    assert source(cache_gb=0.5, expert_bits=8) is None
    assert source(cache_gb=0.01, cache_prior=0.5) == 4
    assert source(cache_gb=0.02, cache_prior=0.5) is None  # quality depends on the cache
    assert source(cache_gb=0.01, cache_prior=0.5, read_threads=2) is None


def test_quality_that_was_bounded_serves_where_the_speed_does_not_matter() -> None:
    """A violated constraint holds for every setting with that quality; a lost comparison only for its own trial. A bounded
    perplexity is never the quality of another row."""
    limit, ends = parse("perplexity <= 1.02 * reference"), {"perplexity_at_least": 17.6, "perplexity_at_most": 19.0}
    bounded = row(2, {"cache_gb": 0.01, "expert_bits": 4}, perplexity=None, scoring_stopped="violates", **ends)
    rows = [row(0, {}, origin="reference"), bounded]

    def source(trial: int, constraints: list[Constraint], names: tuple[str, ...] = ("perplexity",), **knobs: Any) -> Any:
        found = settled_source(rows, trial, {"cache_gb": 0.02, "expert_bits": 4, **knobs}, names, constraints)
        return None if found is None else found["trial"]

    assert quality_source(rows, {"cache_gb": 0.01, "expert_bits": 4}) is None
    assert source(3, [limit]) == source(3, [limit], ("decode_tok_s",)) == source(3, [], ("decode_tok_s",)) == 2
    assert source(3, []) is source(3, [limit], expert_bits=3) is source(3, [parse("perplexity <= 18")]) is None
    assert source(2, []) == 2
    copied = row(4, {"cache_gb": 0.03, "expert_bits": 3}, scoring_stopped="violates", quality_from_trial=2, **ends)
    rows.append({**copied, "perplexity": None})
    assert source(5, [limit], expert_bits=3) is None


def test_equivalent_settings_have_one_quality() -> None:
    cold = {"cold_bits": 2}
    rows = [row(1, {"expert_bits": 3}), row(2, {"expert_bits": 3, **cold}), row(3, {"hot_share": 0.0, **cold})]

    def source(**knobs: Any) -> int | None:
        found = quality_source(rows, knobs)
        return None if found is None else found["trial"]

    assert source(expert_bits=3, cold_bits=3, hot_share=0.5) == source(expert_bits=3, cold_bits=2, hot_share=1.0) == 1
    assert source(expert_bits=3, cold_bits=2, hot_share=0.25) == 2  # the default share
    assert source(expert_bits=3, cold_bits=2, hot_share=0.5) is None
    assert source(expert_bits=2) == 3


def test_settings_of_a_row_are_legal() -> None:
    knobs = {"cache_gb": 0.01, "expert_bits": 4, "cold_bits": 2, "hot_share": 0.3, "prefetch": "stale_gate"}
    assert Knobs.from_mapping(settings_of(row(1, knobs))) == Knobs.from_mapping(knobs)


def test_another_answer_with_the_same_weights_is_wrong() -> None:
    source = row(2, {"expert_bits": 4})
    assert wrong_answer(source, {"timed_nll": 2.8001}) is None
    assert wrong_answer(source, {"timed_nll": None}) is None
    assert "trial 2" in (wrong_answer(source, {"timed_nll": 2.83}) or "")


def test_reference_quality_may_come_from_any_lossless_setting() -> None:
    exact = row(3, {"cache_gb": 0.01}, perplexity=17.5, decode_tok_s=5.0)
    lossy = row(1, {"cache_gb": 0.01, "expert_bits": 4}, perplexity=18.0)
    assert reference_figures([lossy])["perplexity"] is None
    assert reference_figures([lossy, exact])["perplexity"] == 17.5
    assert reference_figures([lossy, exact])["decode_tok_s"] is None
    assert reference_figures([row(0, {}, origin="reference"), lossy, exact])["decode_tok_s"] == 10.0


def test_the_typical_time_is_the_median_of_ok_runs() -> None:
    rows = [
        row(0, {}, origin="reference"),
        row(1, {}),
        row(1, {}, run=1),
        row(2, {}, status="infeasible"),
        row(3, {}, status="oom"),
    ]
    assert typical_s(rows) == 10.0
    assert typical_s([]) is None


POINTS = pd.DataFrame(
    {
        "decode_tok_s_low": [50.0, 30.0, 80.0, 99.0],
        "peak_memory_gb": [2.0, 1.2, 2.5, 1.1],
        "predicted_peak_gb": [1.8, 1.1, 2.2, 1.0],
        "perplexity": [17.0, 17.0, 20.0, 17.0],
        "feasible": [True, True, True, False],
        "suspect": [False] * 4,
    }
)


@pytest.mark.parametrize(
    ("predicted_gb", "perplexity", "expected"),
    [
        (2.0, 17.0, 0),  # the least excess over the prediction is 0.1 GB
        (1.8, 17.0, 1),
        (1.0, 17.0, None),  # less memory than any trial
        (9.0, 25.0, 2),
        (9.0, 16.0, None),  # better quality than any trial
    ],
)
def test_the_rival_is_no_worse_in_memory_and_quality(predicted_gb: float, perplexity: float, expected: int | None) -> None:
    found = rival(POINTS, ["decode_tok_s", "peak_memory_gb", "perplexity"], predicted_gb, {"perplexity": perplexity})
    assert found == expected


def test_a_point_of_unknown_quality_is_no_rival() -> None:
    """Its scoring ended early, so it is not known to be no worse."""
    objectives, quality = ["decode_tok_s", "peak_memory_gb", "perplexity"], {"perplexity": 99.0}
    first = rival(POINTS, objectives, 99.0, quality)
    assert first is not None
    some = POINTS.copy()
    some.loc[first, "perplexity"] = float("nan")
    second = rival(some, objectives, 99.0, quality)
    assert second is not None and second != first


def test_no_rival_if_an_objective_cannot_be_predicted() -> None:
    assert rival(POINTS, ["decode_tok_s", "perplexity"], 2.0, None) is None
    assert rival(POINTS, ["decode_tok_s", "bytes_per_token"], 2.0, {"perplexity": 17.0}) is None
    assert rival(POINTS.head(0), ["decode_tok_s", "perplexity"], 2.0, {"perplexity": 17.0}) is None


def test_settings_larger_than_one_out_of_memory_do_not_run_unless_one_ran() -> None:
    rows = [row(1, {"cache_gb": 0.05, "expert_bits": 8}, status="oom"), row(2, {"cache_gb": 0.05, "expert_bits": 4})]
    assert "trial 1" in (too_large(rows, {"cache_gb": 0.06, "expert_bits": 8, "read_threads": 2}) or "")
    assert "trial 1" in (too_large(rows, {"cache_gb": 0.05}) or "")  # expert_bits unset: the largest
    assert too_large(rows, {"cache_gb": 0.04, "expert_bits": 8}) is None
    assert too_large(rows, {"cache_gb": 0.06, "expert_bits": 6}) is None
    rows.append(row(3, {"cache_gb": 0.07, "expert_bits": 8}))  # a larger setting ran
    assert too_large(rows, {"cache_gb": 0.08, "expert_bits": 8}) is None


def test_a_chunk_that_memory_chooses_is_compared_with_its_like_only() -> None:
    rows = [row(1, {"cache_gb": 0.05}, status="oom"), row(2, {"cache_gb": 0.02, "prefill_chunk": 512}, status="oom")]
    assert "trial 1" in (too_large(rows[:1], {"cache_gb": 0.06}) or "")
    assert too_large(rows[:1], {"cache_gb": 0.06, "prefill_chunk": 4096}) is None
    assert too_large(rows[1:], {"cache_gb": 0.06}) is None
    assert "trial 2" in (too_large(rows[1:], {"cache_gb": 0.06, "prefill_chunk": 2048}) or "")
