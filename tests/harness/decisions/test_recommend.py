"""Recommended settings on rows with a known answer: rules, confirmation, default and reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from synthetic import frame, row

from harness.analysis.pareto import front, measured, standings
from harness.decisions.confirmation import next_sweep
from harness.decisions.recommend import compared, default_trial, named, only_restored, recommended, to_confirm

LOSSLESS: dict[str, Any] = {"cache_gb": 0.01}
LOSSY: dict[str, Any] = {"cache_gb": 0.01, "expert_bits": 4}


def study(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a study with one right answer for each rule."""
    return [
        row(0, {}, (50, 9.0, 10.0), origin="reference"),
        row(1, LOSSLESS, (10, 2.0, 10.0), origin="anchor"),
        row(2, LOSSLESS | {"read_threads": 4}, (20, 3.0, 10.0), origin="anchor"),
        row(3, LOSSLESS | {"read_threads": 8}, (26, 4.0, 10.0)),  # fastest lossless
        row(4, LOSSY, (40, 3.5, 10.09)),  # fastest within 1 %
        row(5, LOSSY | {"read_threads": 8}, (37, 1.5, 10.05)),  # least memory at 0.9 of that
        row(6, LOSSY | {"expert_bits": 2}, (80, 1.2, 14.0)),  # loses too much
        row(7, LOSSY | {"read_threads": 2}, (30, 1.4, 10.02)),  # too slow for least memory; fastest in 1.45 GB
        row(8, LOSSY | {"read_threads": 3}, (90, 1.0, 10.0), feasible=False),
        row(9, LOSSY | {"read_threads": 6}, (90, 1.0, 10.0), suspect="heat"),
        *more,
    ]


def again(trial: int, values: dict[str, Any], figures: tuple[float, float, float], *factors: float) -> list[dict[str, Any]]:
    return [
        row(trial, values, (figures[0] * f, *figures[1:]), run=i, origin="confirm") for i, f in enumerate(factors, start=1)
    ]


def answers(df: Any, **wishes: Any) -> dict[str, int | None]:
    return {c.name: c.trial for c in recommended(df, **wishes)}


def test_each_rule_names_its_setting() -> None:
    df = frame(study())
    assert answers(df, memory_gb=1.45) == {
        "fastest_lossless": 3, "fastest": 4, "least_memory": 5, "fastest_in_memory": 7
    }  # fmt: skip
    assert answers(df) == {"fastest_lossless": 3, "fastest": 4, "least_memory": 5}
    assert answers(df, max_loss=0.5)["fastest"] == 6
    assert answers(df, max_loss=0)["fastest"] == 3
    assert answers(df, speed_share=0.7)["least_memory"] == 7
    assert set(answers(df, max_loss=0.5, memory_gb=4).values()) <= set(standings(df).query("standing != 'dominated'").index)


def test_where_scoring_ended_early_the_upper_end_decides_until_a_run_completes_it() -> None:
    """Trial 4 is recommended only if its perplexity is within the loss at most; a complete perplexity takes precedence."""

    def fastest(at_most: float, *more: dict[str, Any]) -> int | None:
        some = study(*more)
        some[4] |= {"perplexity": None, "scoring_stopped": "clear", "perplexity_at_most": at_most}
        return answers(frame(some).assign(objectives="decode_tok_s,peak_memory_gb"))["fastest"]

    assert fastest(10.09) == 4 and fastest(10.2) == 5
    assert fastest(10.09, *again(4, LOSSY, (40, 3.5, 10.2), 1.0, 1.0)) == 5


def test_a_rule_without_a_setting_gives_its_reason() -> None:
    [choice] = [c for c in recommended(frame(study()), memory_gb=0.5) if c.name == "fastest_in_memory"]
    assert (choice.trial, choice.confirmed, choice.reason) == (None, False, "no measured setting meets the rule")
    choices = recommended(frame([r for r in study() if r["trial"] in (4, 5)]))
    assert [c.trial for c in choices] == [None, None, None], "nothing is within a loss of a perplexity that is not known"
    assert all(c.reason for c in choices)
    assert recommended(frame([])) == []


def test_default_and_reference_are_always_named() -> None:
    df = frame(study())
    assert default_trial(df) == 1
    rows = {name: point for name, point, _ in named(df, recommended(df))}
    assert list(rows)[-2:] == ["default", "reference"]
    assert (rows["default"]["trial"], rows["reference"]["trial"]) == (1, 0)
    failed = frame([{**r, "status": "oom"} if r["trial"] < 2 else r for r in study()])
    assert default_trial(failed) == 1, "the default stays the default where it failed"
    assert [p is None for n, p, _ in named(failed, recommended(failed)) if n in ("default", "reference")] == [True, True]


def test_the_comparison_with_the_default() -> None:
    df = frame(study(*again(1, LOSSLESS, (10, 2, 10), 0.98, 1.02), *again(4, LOSSY, (40, 3.5, 10.09), 1.01, 0.99)))
    every = measured(df)
    text = compared(df, every.loc[4], every.loc[1])
    assert text.startswith("4x (3.")
    assert text.endswith(") the default, +0.9 % perplexity, +1.50 GB")
    assert "same perplexity" in compared(df, every.loc[3], every.loc[1])
    assert compared(df, every.loc[1], every.loc[1]) == "the default itself"


def test_a_setting_is_confirmed_by_fresh_runs_and_without_a_near_rival() -> None:
    assert not any(c.confirmed for c in recommended(frame(study())))
    rows = study(*(r for t, v, f in ((3, LOSSLESS | {"read_threads": 8}, (26, 4.0, 10.0)), (4, LOSSY, (40, 3.5, 10.09)))
                   for r in again(t, v, f, 1.01, 0.99)))  # fmt: skip
    sure = {c.name: c.confirmed for c in recommended(frame(rows))}
    assert sure == {"fastest_lossless": True, "fastest": False, "least_memory": False}, "trial 5 may be as fast as trial 4"
    fast = {c.name: c for c in recommended(frame(rows))}["fastest"]
    assert fast.rivals[0] == 5
    assert fast.doubt > 0.03


def test_a_recommended_setting_is_confirmed_by_a_run_that_computes_its_prompts() -> None:
    more = again(3, LOSSLESS | {"read_threads": 8}, (26, 4.0, 10.0), 1.0, 1.001, 0.999)
    rows = [{**one, "prefill": "restored" if one["trial"] else "real"} for one in study(*more)]

    def fastest_lossless(rows: list[dict[str, Any]]) -> tuple[bool, bool]:
        choices = recommended(frame(rows))
        (choice,) = (c for c in choices if c.name == "fastest_lossless")
        return choice.confirmed, choice.trial in to_confirm(choices, frame(rows))

    assert only_restored(frame(rows)) == set(range(1, 10))
    assert fastest_lossless(rows) == (False, True)
    rows[-1]["prefill"] = "real"
    assert fastest_lossless(rows) == (True, False)
    assert not only_restored(frame(study()))  # rows of before the column
    untimed = [{**one, "prefill": "untimed" if one["prefill"] == "restored" else one["prefill"]} for one in rows]
    assert only_restored(frame(untimed)) == only_restored(frame(rows))


def test_the_default_and_recommended_settings_are_confirmed_first() -> None:
    df = frame(study())
    choices = recommended(df)
    assert to_confirm(choices, df)[:4] == [1, 3, 4, 5]
    assert set(next_sweep(df, spent=0, budget=40, sweep=0)[:4]) == {1, 3, 4, 5}
    assert next_sweep(df, spent=0, budget=40, sweep=0, own={5, 7})[0] == 5
    assert next_sweep(df, spent=40, budget=40, sweep=0) == []


@pytest.mark.parametrize("seed", range(3))
def test_confirmation_ends_with_the_right_settings_confirmed(seed: int) -> None:
    """60 settings with 5 % noise: the confirmed settings are truly within 5 % of the best for their rule."""
    rng = np.random.default_rng(seed)
    truth: dict[int, tuple[dict[str, Any], tuple[float, float, float]]] = {}
    for trial in range(1, 61):
        bits = int(rng.choice([3, 4, 8])) if trial > 1 and rng.random() < 0.6 else None
        values = {"cache_gb": float(rng.uniform(0.01, 0.04)), "read_threads": int(rng.integers(1, 9)), "expert_bits": bits}
        speed = 10 * (1 + 60 * values["cache_gb"]) * values["read_threads"] ** 0.3 * (1.3 if bits else 1)
        truth[trial] = values, (speed, 0.1 + values["cache_gb"], {3: 11.0, 4: 10.05, 8: 10.0, None: 10.0}[bits])

    def run(trial: int, number: int, origin: str) -> dict[str, Any]:
        values, (speed, memory, perplexity) = truth[trial]
        return row(
            trial, values, (speed * float(np.exp(0.05 * rng.normal())), memory, perplexity), run=number, origin=origin
        )

    rows = [run(t, 0, "anchor" if t == 1 else "sampler") for t in truth]
    spent = 0
    while trials := next_sweep(frame(rows), spent=spent, budget=30, sweep=0):
        for trial in trials:
            rows.append(run(trial, sum(r["trial"] == trial for r in rows), "confirm"))
        spent += len(trials)
    choices = {c.name: c for c in recommended(frame(rows))}
    lossless = max(f[0] for v, f in truth.values() if v["expert_bits"] is None)
    close = max(f[0] for v, f in truth.values() if f[2] <= 10.1)
    for name, best in (("fastest_lossless", lossless), ("fastest", close)):
        trial = choices[name].trial
        assert trial is not None
        assert truth[trial][1][0] >= best / 1.08
        if choices[name].confirmed:
            assert truth[trial][1][0] >= best / 1.06
    least = choices["least_memory"].trial
    assert least is not None
    assert truth[least][1][0] >= 0.9 * close / 1.12
    fresh = measured(frame(rows))["fresh_runs"]
    assert all(fresh[c.trial] >= 2 for c in choices.values())
    assert fresh[1] >= 2, "the default"
    assert len(front(frame(rows)))
