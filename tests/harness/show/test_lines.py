"""Lines of a report: savings by reason, contribution by origin, undecided trials, violations and drift."""

from __future__ import annotations

from synthetic import trials

from harness.analysis.pareto import standings
from harness.show.lines import contribution, forecast, health, rehearsal, saved, savings, undecided, violations


def test_savings_are_named_by_their_reason() -> None:
    df = trials(*[(1, 1, 1)] * 4, status=["infeasible", "dominated", "stopped", "ok"], saved_s=[60.0, 120.0, 5.0, 7200.0])
    assert saved(df.assign(wall_s=10.0)) == [
        "saved 2.1 h of 2.1 h: 1.0 min pruned: out of memory by arithmetic, 2.0 min pruned: speed bound below the front, "
        "2.0 h quality reused, 5 s stopped early"
    ]
    assert ("quality reused", 7200.0, 1) in savings(df)
    ended = df.assign(scoring_stopped=[None, None, None, "violates"], quality_from_trial=None)
    assert ("scoring ended early", 7200.0, 1) in savings(ended)
    assert ("quality reused", 7200.0, 1) in savings(ended.assign(quality_from_trial=[None, None, None, 2]))
    assert saved(df.assign(saved_s=None)) == savings(df.assign(saved_s=None)) == []


def test_violations_and_drift_have_one_line() -> None:
    df = trials((1, 1, 1), (2, 2, 2), feasible=[False, True], violated=["perplexity <= 1", None], run=[0, 0])
    assert violations(df) == ["1 violate a constraint, most often perplexity <= 1"]
    assert health(df.assign(device_profile=["m1_8gb", None]))[0].startswith(
        "limits of device=m1_8gb, which is not the machine"
    )
    assert health(df.assign(drift=[0.9, None]))[-1] == "sentinel speed 90% to 90% of the earlier median in 1 runs"


def test_forecasts_have_one_line() -> None:
    df = trials((10, 1, 1), forecast_tok_s=[9.0], forecast_tok_s_low=[8.0], forecast_tok_s_high=[11.0], run=[0])
    assert forecast(df.assign(status="ok"))[0].endswith("1 setting: median error 10.0%, 1 (100%) inside the 80 % interval")
    assert forecast(df.assign(forecast_tok_s=None)) == []


def test_a_rehearsal_is_named() -> None:
    df = trials((1, 1, 1), (2, 2, 2), mode=["streamed float32 cpu direct, rehearsal: random weights", None])
    assert rehearsal(df)[0].startswith("rehearsal: random weights (1 of 2 runs)") and rehearsal(df.assign(mode=None)) == []


def test_contribution_needs_two_origins() -> None:
    df = trials((10, 2, 5), (4, 1, 5), origin=["sampler", "random"])
    assert contribution(df)[0] == "contribution by origin:" and len(contribution(df)) == 3
    assert contribution(df.assign(origin="sampler")) == []


def test_undecided_trials_are_listed() -> None:
    every = standings(trials((10, 2, 5), (4, 1, 5)))
    assert undecided(every) == []
    assert "because of near rivals: 1, 2;" in undecided(every.assign(standing="undecided"))[0]
