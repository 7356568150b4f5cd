"""Pruning: a setting whose speed bound is below its rival's is not run, and early stopping receives the rival's times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from engine import Judge, Knobs
from harness.propose.ask_tell import Proposal
from harness.results.columns import NAMES
from harness.results.history import History
from harness.results.metrics import OBJECTIVES
from harness.run.job import Job, Rival
from harness.run.stopping.pruning import dominated, infeasible, rival_of, score_rule, stop_rule
from harness.study.constraints import parse

VALUES = {"cache_gb": 1.0, "ssd_gbps": 0.5}
NEW = Job(Proposal(4, "sampler", VALUES))


def plan(ceiling: float | None = None, reason: str | None = None, error: float = 0.01) -> Any:
    engine = SimpleNamespace(ceiling_tok_s=lambda *given: ceiling)
    return SimpleNamespace(
        engine=engine, checkpoint="c", judge=Judge(()), protocol={}, objectives=OBJECTIVES, scored=False,
        forbidden=lambda values: (reason, 1.5), wants_kl=False, json_prompts=None, constraints=[],
        config={"protocol": {"stop_error": error, "stop_scoring_error": error}, "recommend": {"max_loss": 0.01}},
    )  # fmt: skip


def row(trial: int, speed: float, **more: Any) -> dict[str, Any]:
    figures = {"decode_tok_s": speed, "peak_memory_gb": 1.6, "perplexity": 4.0, "predicted_peak_gb": 1.5}
    given = {"trial": trial, "run": 0, "status": "ok", "origin": "sampler", "round": 1}
    return {**dict.fromkeys(NAMES), **Knobs(**VALUES).as_dict(), **given, **figures, **more}


def test_a_setting_that_exceeds_memory_is_infeasible() -> None:
    assert infeasible(plan(reason="too large"), NEW, []) == ("too large", 1.5)
    ran_out = row(1, 1.0, status="oom")
    assert "as trial 1, which ran out of memory" in str(infeasible(plan(), NEW, [ran_out])[0])
    assert infeasible(plan(), Job(NEW.proposal, run=1), [ran_out]) == (None, 1.5)


def test_only_a_new_setting_of_known_quality_has_a_rival() -> None:
    history, source = History([row(1, 5.0), row(2, 9.0)]), row(1, 5.0)
    found = rival_of(plan(), NEW, history, 1.5, source)
    assert found is not None and found.trial == 2 and 5.0 < found.tok_s < 9.0 and found.noise > 0
    for job in (Job(Proposal(4, "anchor", VALUES)), Job(NEW.proposal, run=1)):
        assert rival_of(plan(), job, history, 1.5, source) is None
    assert rival_of(plan(), NEW, History(), 1.5, source) is None


def test_a_speed_bound_below_the_rival_is_dominated() -> None:
    to_beat = Rival(2, 8.0, 0.1)
    assert dominated(plan(None), NEW, to_beat) is dominated(plan(8.0), NEW, to_beat) is None
    reason = "at most 7.9 tokens/s with ssd_gbps=0.5; trial 2 reaches 8 with no more memory and no worse quality"
    assert dominated(plan(7.9), NEW, to_beat) == reason


def test_scoring_ends_early_only_for_a_new_lossy_setting_that_is_scored_by_perplexity_alone() -> None:
    lossy = Job(Proposal(4, "sampler", {**VALUES, "expert_bits": 4}))
    own = row(1, 5.0, origin="anchor", scored_tokens=900)
    rule = score_rule(plan(), lossy, History([own]), "own.npy")
    assert rule is not None and (rule["tokens"], rule["error"], rule["reference"]) == (900, 0.01, "own.npy")
    assert rule["bounds"] == [] and [r["trial"] for r in rule["rivals"]] == [1]
    limited = SimpleNamespace(**{**vars(plan()), "constraints": [parse("perplexity <= 1.02 * reference")],
                                 "objectives": ("decode_tok_s", "peak_memory_gb")})  # fmt: skip
    rule = score_rule(limited, lossy, History([own]), "own.npy")
    assert rule is not None and rule["rivals"] is None
    assert [(b["text"], b["value"], b["constraint"]) for b in rule["bounds"]] == [
        ("perplexity <= 1.02 * reference", 4.08, True), ("recommend.max_loss", 4.04, False),
    ]  # fmt: skip
    for job in (NEW, Job(lossy.proposal, run=1), Job(Proposal(1, "anchor", lossy.proposal.values))):
        assert score_rule(plan(), job, History([own]), "") is None
    assert score_rule(plan(error=0), lossy, History([own]), "") is None
    assert score_rule(plan(), lossy, History(), "") is None  # no scored row of the unchanged model
    with_kl = SimpleNamespace(**{**vars(plan()), "wants_kl": True})
    assert score_rule(with_kl, lossy, History([own]), "") is None
    before = row(3, 5.0, expert_bits=4, perplexity=None, scoring_stopped="trial 0 is better")
    assert score_rule(plan(), lossy, History([own, before]), "") is None


def test_early_stopping_needs_the_times_of_the_rival() -> None:
    rows, to_beat = [row(2, 8.0)], Rival(2, 8.0, 0.1)
    rule = stop_rule(plan(), to_beat, rows, {(2, 0): [100.0, 125.00001]})
    assert rule == {"below_tok_s": 8.0, "error": 0.01, "noise": 0.1, "rival_ms": [100.0, 125.0]}
    assert stop_rule(plan(), to_beat, rows, {}) is stop_rule(plan(error=0), to_beat, rows, {(2, 0): [1.0]}) is None
