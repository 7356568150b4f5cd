"""Early: whether a run is already too slow to go on with, by a rule with a stated probability of being wrong.

The rule looks at a few fixed shares of the tokens, so that the error is divided by the number of looks (Bonferroni). At a
look the tokens so far are cut into a few equal blocks: token times are autocorrelated (a miss brings others), means of long
blocks hardly are, and their spread gives a t interval of the mean time. It is not taken for smaller than what the pull of
each token on the next says, for a few blocks may happen to agree. Widened by how much whole runs differ from one another,
the interval is an upper bound of the setting's speed; only where that is below what could enter the front the run ends.

What it takes for granted is that the tokens to come are like those that were seen, but for chance. What the texts differ by
belongs into `noise`.
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
BLOCKS = 6, 12  # the fewest to judge by, and the most: more tokens make longer blocks


class Early:
    """Called with the milliseconds of the tokens so far: False if its tokens over time, with a probability of at least
    1 - `error`, is below `stop_below_tok_s`. `noise`: relative standard deviation of whole runs' speed.

    Raises `HeadraceError` for an impossible value.
    """

    def __init__(self, stop_below_tok_s: float, error: float, total_tokens: int, noise: float = 0.0) -> None:
        for name, value, low, high in (
            ("stop_below_tok_s", stop_below_tok_s, 0, math.inf),
            ("error", error, 0, 0.5),
            ("total_tokens", total_tokens, 0, math.inf),
        ):
            if not low < value < high:
                raise HeadraceError(f"{name}={value!r} is not between {low} and {high}; give a number that is")
        if not 0 <= noise < 1:
            raise HeadraceError(f"noise={noise!r} is not a share of the speed, 0 .. 1; give a number that is")
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
        """Upper bound of the speed at one look, tokens/s; infinite where the times say nothing."""
        times = np.asarray(token_ms, float)
        blocks = min(len(times) // LEAST_BLOCK, BLOCKS[1])
        means = times[len(times) % blocks :].reshape(blocks, -1).mean(axis=1)
        mean, p = float(means.mean()), 1 - self.error / len(self.looks)
        spread = max(float(means.std(ddof=1)) / math.sqrt(blocks), _spread_of_mean(times))
        margin = math.hypot(t_quantile(p, blocks - 1) * spread, NormalDist().inv_cdf(p) * self.noise * mean)
        return 1e3 / (mean - margin) if margin < mean else math.inf


def _spread_of_mean(times: np.ndarray) -> float:
    """Standard error of the mean of times [tokens] of which each pulls the next one along as the first order says."""
    apart = times - times.mean()
    squares = float(apart @ apart)
    pull = min(max(float(apart[1:] @ apart[:-1]) / squares, 0.0), 0.98) if squares else 0.0
    return math.sqrt(squares / (len(times) - 1) / len(times) * (1 + pull) / (1 - pull))
