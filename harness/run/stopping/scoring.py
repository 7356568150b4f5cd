"""Scoring: end it early for a setting whose perplexity can no longer change a decision, with a stated probability of error.

The perplexity of all tokens is bounded from those scored so far. With the log-likelihoods of the unchanged model for the
same tokens, only the differences are uncertain: its own mean is known. Texts and tokens that are hard for both models do not
widen the interval then. The interval is that of early stopping, with half of the error divided by the number of looks and
by the two sides; the other half belongs to the comparison of speeds.

Scoring ends if the interval violates a constraint. Where perplexity is an objective, it also ends if a measured point with
no more memory and no less speed has a lower perplexity than the interval. Where it is no objective, it also ends once the
interval is clear of every bound, on either side: those of the constraints, and the largest loss of a recommended setting.

Assumption: the remaining tokens resemble the ones seen, up to chance, as for early stopping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from .early_stopping import BLOCKS, LEAST_BLOCK, mean_of

LOOKS = (1 / 4, 1 / 2, 3 / 4)  # shares of the tokens


@dataclass(frozen=True)
class Stopped:
    """Why scoring ended early, after how many tokens, and the ends of the interval of the perplexity of all tokens."""

    reason: str
    tokens: int
    at_least: float
    at_most: float


class Scoring:
    """A callable on the negative log-likelihoods so far (in parts), the speed and the peak memory of the timed part. It
    returns False when scoring may end; `stopped` then says why.

    `rule`: the request's `stop_scoring` (`pruning.score_rule`). `reference`: nll [tokens] of the unchanged model, or None.
    """

    def __init__(self, rule: Mapping[str, Any], reference: np.ndarray | None) -> None:
        self.stopped: Stopped | None = None
        self._bounds: Sequence[Mapping[str, Any]] = rule["bounds"]
        self._rivals: Sequence[Mapping[str, float]] | None = rule["rivals"]
        self._total, self._noise = int(rule["tokens"]), float(rule["noise"])
        self._reference = reference if reference is not None and len(reference) == self._total else None
        least = BLOCKS[0] * LEAST_BLOCK
        self._looks = [look for share in LOOKS if (look := int(share * self._total)) >= least]
        self._p_speed, self._p = 1 - rule["error"] / 2, 1 - rule["error"] / 4 / max(1, len(self._looks))
        self._due = list(self._looks)

    def __call__(self, parts: Sequence[np.ndarray], tok_s: float, peak_gb: float) -> bool:
        count = sum(map(len, parts))
        if not self._due or count < self._due[0] or count >= self._total:
            return True
        self._due = [look for look in self._due if look > count]
        low, high = self.interval(np.concatenate(parts))
        reason = self._violated(low, high) or (
            self._clear(low, high) if self._rivals is None else self._dominated(low, tok_s, peak_gb)
        )
        if reason:
            self.stopped = Stopped(reason, count, low, high)
        return not reason

    def interval(self, nll: np.ndarray) -> tuple[float, float]:
        """The ends of the interval of the perplexity of all tokens, from the nll of the first ones."""
        known = np.zeros(self._total) if self._reference is None else self._reference
        apart, margin = mean_of(nll - known[: len(nll)], self._p)
        middle = float(known.mean()) + apart
        return _exp(middle - margin), _exp(middle + margin)

    def _violated(self, low: float, high: float) -> str:
        for bound in self._bounds:
            if bound["constraint"] and (low > bound["value"] if bound["upper"] else high < bound["value"]):
                return f"violates {bound['text']}"
        return ""

    def _clear(self, low: float, high: float) -> str:
        clear = all(not low <= bound["value"] <= high for bound in self._bounds)
        return "clear of every bound" if clear else ""

    def _dominated(self, low: float, tok_s: float, peak_gb: float) -> str:
        most = tok_s * math.exp(NormalDist().inv_cdf(self._p_speed) * self._noise)
        for rival in self._rivals or ():
            if rival["tok_s"] >= most and rival["gb"] <= peak_gb and rival["perplexity"] < low:
                return f"trial {rival['trial']:.0f} is better with no more memory and no less speed"
        return ""


def scoring_of(rule: Mapping[str, Any] | None) -> Scoring | None:
    """The rule of a request, with the unchanged model's nll if its file is there; None if scoring never ends early."""
    if not rule:
        return None
    try:
        reference = np.load(Path(rule["reference"]), allow_pickle=False)
    except (OSError, ValueError):
        reference = None
    return Scoring(rule, reference)


def _exp(nll: float) -> float:
    return math.exp(min(nll, 700.0))
