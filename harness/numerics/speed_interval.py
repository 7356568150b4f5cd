"""Two speeds of a run from its tokens' times: tokens over time with its interval, and the steady one.

`decode_tok_s` is tokens over time. It is what a user waits for and what a bandwidth bounds, and a mean, so that the rule
which ends slow runs (`harness.run.early_stopping`) bounds the same. Its interval is of the mean token time.
Neighbouring tokens are alike
(what one read the next finds), so stretches of `STRETCH` consecutive tokens are drawn, each starting at any token: the
moving-block bootstrap (Künsch, 1989). Few stretches agree by chance, so the interval is widened as Student's t is.

It is called a 95 % interval and holds the truth less often, for the longest waits are seldom seen. Simulated with
heavy-tailed waits, 300 tokens: in 92 % of runs if the need for reads is not correlated from token to token, 93 % at a
correlation of 0.5, 91 % at 0.8, 85 % at 0.9. 1000 tokens: 93, 93, 92, 86 %. 60 tokens: 89, 88, 79, 67 %. It covers chance
within the run, not the differences between runs.

`steady_tok_s` is the median speed of the stretches: one hiccup of the machine does not speak for it as it does for a mean.
What is slow in more than half of the stretches counts in full; what happens in fewer does not. Much below it, `decode_tok_s`
had a few long waits. It is information: no objective, no bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from .student_t import t_quantile

STRETCH = 16  # tokens; of a short run an eighth
DRAWS = 1000


def speed_interval(token_ms: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """(tokens over time, low, high) in tokens/s from the wall times of consecutive tokens, in ms; a seed fixes the interval.

    Raises `ValueError` without tokens. One token, or all alike, gives an interval of no width.
    """
    means, count, p = 1 / _speeds(token_ms), len(token_ms) // _stretch(token_ms), (1 + level) / 2
    drawn = np.random.default_rng(seed).choice(means, (DRAWS, count)).mean(axis=1)
    speed = 1000 / float(np.mean(token_ms))
    wider = t_quantile(p, max(5, count - 1)) / NormalDist().inv_cdf(p) * math.sqrt(count / max(1, count - 1))
    low, high = (speed * (1 / (speed * time)) ** wider for time in np.quantile(drawn, [p, 1 - p]))
    return speed, min(float(low), speed), max(float(high), speed)


def speeds(token_ms: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The columns of a row that the times of its tokens decide."""
    names = ("decode_tok_s", "decode_tok_s_low", "decode_tok_s_high")
    return {**dict(zip(names, speed_interval(token_ms), strict=True)), "steady_tok_s": float(np.median(_speeds(token_ms)))}


def _stretch(times: Sequence[float] | np.ndarray) -> int:
    return min(STRETCH, max(1, len(times) // 8))


def _speeds(token_ms: Sequence[float] | np.ndarray) -> np.ndarray:
    """Tokens/s of the stretch that starts at each token."""
    if not len(token_ms):
        raise ValueError("no token times to take a speed from")
    stretch = _stretch(token_ms)
    return 1000 * stretch / np.convolve(np.asarray(token_ms, float), np.ones(stretch), "valid")
