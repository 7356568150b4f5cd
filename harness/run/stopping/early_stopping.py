"""Early stopping: end a run whose speed is too low to enter the front, with a stated probability of error.

The rule looks at a few fixed shares of the tokens, and divides the error by their number (Bonferroni). At a look, the times
so far are cut into a few equal blocks. Times of single tokens are autocorrelated (one cache miss brings others), means of
long blocks hardly are, and their spread yields a t interval of the mean time. The spread is at least the one that follows
from the first-order autocorrelation of the tokens, because a few blocks may agree by chance. Widened by the differences
between whole runs, the interval bounds the setting's speed from above. The run ends only if that bound is below the speed
needed.

Assumption: the remaining tokens resemble the ones seen, up to chance. Differences between texts belong in `noise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from engine import HeadraceError
from harness.numerics.student_t import t_quantile

LOOKS = (1 / 8, 1 / 4, 1 / 2)  # shares of the tokens
LEAST_BLOCK = 8  # tokens
BLOCKS = 6, 12  # fewest and most blocks; more tokens make longer blocks


class Early:
    """A callable on the token times so far, in ms. It returns False if the run's tokens over time are below
    `stop_below_tok_s`, with a probability of at least 1 - `error`. `noise`: relative standard deviation of the speed of
    whole runs.

    Raises `HeadraceError` for an impossible value.
    """

    def __init__(self, stop_below_tok_s: float, error: float, total_tokens: int, noise: float = 0.0) -> None:
        for name, value, low, high in (
            ("stop_below_tok_s", stop_below_tok_s, 0, math.inf),
            ("error", error, 0, 0.5),
            ("total_tokens", total_tokens, 0, math.inf),
        ):
            if not low < value < high:
                raise HeadraceError(f"{name}={value!r} is not between {low} and {high}; give a number in that range")
        if not 0 <= noise < 1:
            raise HeadraceError(f"noise={noise!r} is not a share of the speed, 0 .. 1; give a number in that range")
        least = BLOCKS[0] * LEAST_BLOCK
        self.looks = [look for share in LOOKS if (look := int(share * total_tokens)) >= least]
        self.stop_below_tok_s = stop_below_tok_s
        self.error = error
        self.noise = noise

    def __call__(self, token_ms: Sequence[float]) -> bool:
        if len(token_ms) not in self.looks:
            return True
        return self.upper_tok_s(token_ms) >= self.stop_below_tok_s

    def upper_tok_s(self, token_ms: Sequence[float]) -> float:
        """Upper bound of the speed at one look, in tokens/s; infinite if the times do not bound it."""
        p = 1 - self.error / len(self.looks)
        mean, within = mean_of(token_ms, p)
        margin = math.hypot(within, NormalDist().inv_cdf(p) * self.noise * mean)
        return 1e3 / (mean - margin) if margin < mean else math.inf


def mean_of(values: Sequence[float] | np.ndarray, p: float) -> tuple[float, float]:
    """The mean of autocorrelated values [at least 2 LEAST_BLOCK], and the margin that the mean of all such values exceeds
    with probability 1 - p, on either side."""
    values = np.asarray(values, float)
    blocks = min(len(values) // LEAST_BLOCK, BLOCKS[1])
    means = values[len(values) % blocks :].reshape(blocks, -1).mean(axis=1)
    spread = max(float(means.std(ddof=1)) / math.sqrt(blocks), _spread_of_mean(values))
    return float(means.mean()), t_quantile(p, blocks - 1) * spread


def _spread_of_mean(times: np.ndarray) -> float:
    """Standard error of the mean of times [tokens] with their first-order autocorrelation."""
    apart = times - times.mean()
    squares = float(apart @ apart)
    correlation = min(max(float(apart[1:] @ apart[:-1]) / squares, 0.0), 0.98) if squares else 0.0
    return math.sqrt(squares / (len(times) - 1) / len(times) * (1 + correlation) / (1 - correlation))
