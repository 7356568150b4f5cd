"""Scoring ends early only where the rest cannot change a decision, no more often wrongly than the stated error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.run.stopping.scoring import LOOKS, Scoring, scoring_of

TOKENS = 2000
RANDOM = np.random.default_rng(3)
OWN = np.exp(RANDOM.normal(0.5, 0.8, TOKENS))  # nll of the unchanged model
PERPLEXITY = float(np.exp(OWN.mean()))
LIMIT = {"text": "perplexity <= 1.02 * reference", "value": 1.02 * PERPLEXITY, "upper": True, "constraint": True}
LOSS = {"text": "recommend.max_loss", "value": 1.01 * PERPLEXITY, "upper": True, "constraint": False}


def rule(**more: Any) -> dict[str, Any]:
    given = {"bounds": [LIMIT], "rivals": [], "tokens": TOKENS, "noise": 0.02, "error": 0.01, "reference": ""}
    return {**given, **more}


def lossy(loss: float, spread: float = 0.3) -> np.ndarray:
    """nll of a model whose tokens cost `loss` more on average."""
    apart = RANDOM.normal(0, spread, TOKENS)
    return np.asarray(OWN + loss + apart - apart.mean())


def scored(scoring: Scoring, nll: np.ndarray, tok_s: float = 5.0, gb: float = 2.0) -> int:
    """Tokens after which scoring ends: prompts in parts, then token by token."""
    parts: list[np.ndarray] = []
    for part in (*np.split(nll[:300], 3), *np.split(nll[300:], TOKENS - 300)):
        parts.append(part)
        if not scoring(parts, tok_s, gb):
            break
    return sum(map(len, parts))


def test_a_violated_constraint_ends_scoring_at_the_first_look() -> None:
    nll = lossy(0.2)
    scoring = Scoring(rule(), OWN)
    assert scored(scoring, nll) == LOOKS[0] * TOKENS
    stopped = scoring.stopped
    assert stopped is not None and stopped.tokens == 500
    assert stopped.reason == "violates perplexity <= 1.02 * reference"
    assert LIMIT["value"] < stopped.at_least < np.exp(nll.mean()) < stopped.at_most


def test_what_is_near_a_bound_or_on_the_front_is_scored_completely() -> None:
    for loss, given in ((0.02, rule()), (0.0, rule()), (0.0, rule(rivals=None, bounds=[LOSS]))):
        nll = lossy(loss + (0.01 if given["rivals"] is None else 0))
        scoring = Scoring(given, OWN)
        assert scored(scoring, nll) == TOKENS and scoring.stopped is None


def test_without_the_objective_an_interval_clear_of_every_bound_is_enough() -> None:
    """On either side: a setting without loss meets both bounds, and one with much loss is never recommended."""
    good = Scoring(rule(rivals=None, bounds=[LIMIT, LOSS]), OWN)
    assert scored(good, lossy(-0.05)) < TOKENS
    assert good.stopped is not None and good.stopped.reason == "clear of every bound"
    assert good.stopped.at_most < LOSS["value"]
    bad = Scoring(rule(rivals=None, bounds=[LOSS]), OWN)
    assert scored(bad, lossy(0.2)) < TOKENS and bad.stopped is not None and bad.stopped.at_least > LOSS["value"]


@pytest.mark.parametrize(
    ("tok_s", "gb", "perplexity", "ends"),
    [(9.0, 2.0, 1.0, True), (5.1, 2.0, 1.0, False), (9.0, 2.1, 1.0, False), (9.0, 2.0, 1.3, False)],
)
def test_a_point_that_is_better_in_all_objectives_ends_scoring(
    tok_s: float, gb: float, perplexity: float, ends: bool
) -> None:
    """Better beyond the noise of the speed (2 %, 5.0 tokens/s), and by a perplexity below the whole interval."""
    rivals = [{"trial": 4.0, "tok_s": tok_s, "gb": gb, "perplexity": perplexity * PERPLEXITY}]
    scoring = Scoring(rule(bounds=[], rivals=rivals), OWN)
    assert (scored(scoring, lossy(0.15)) < TOKENS) == ends
    if ends:
        assert scoring.stopped is not None and scoring.stopped.reason.startswith("trial 4 is better")


def test_the_error_is_at_most_the_stated_one() -> None:
    """Settings exactly at the bound, with autocorrelated differences: each end of scoring is an error."""
    ends, tries, error = 0, 400, 0.2
    for _ in range(tries):
        apart = np.convolve(RANDOM.normal(0, 1, TOKENS + 7), np.ones(8) / 8, "valid")
        nll = OWN + apart - apart.mean() + np.log(1.02)
        scoring = Scoring(rule(error=error), OWN)
        ends += scored_fast(scoring, nll)
    assert ends <= tries * error


def scored_fast(scoring: Scoring, nll: np.ndarray) -> bool:
    """Whether scoring ends, with looks alone."""
    return not all(scoring([nll[: int(share * TOKENS)]], 5.0, 2.0) for share in LOOKS)


def test_without_the_unchanged_model_the_interval_is_wider(tmp_path: Path) -> None:
    nll = lossy(0.1)
    low, high = Scoring(rule(), OWN).interval(nll[:1000])
    wide = Scoring(rule(), None).interval(nll[:1000])
    assert wide[0] < low < np.exp(nll.mean()) < high < wide[1]
    np.save(tmp_path / "own.npy", OWN)
    found = scoring_of(rule(reference=str(tmp_path / "own.npy")))
    assert found is not None and found.interval(nll[:1000]) == (low, high)
    for content in (None, b"damaged"):
        file = tmp_path / "other.npy"
        if content is not None:
            file.write_bytes(content)
        other = scoring_of(rule(reference=str(file)))
        assert other is not None and other.interval(nll[:1000]) == wide
    assert Scoring(rule(), OWN[:-1]).interval(nll[:1000]) == wide  # of other texts
    assert scoring_of(None) is None


def test_few_tokens_are_scored_completely() -> None:
    nll = lossy(0.5)[:60]
    scoring = Scoring(rule(tokens=60), OWN[:60])
    assert all(scoring([nll[:count]], 5.0, 2.0) for count in range(1, 61))
