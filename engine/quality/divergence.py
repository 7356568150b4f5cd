"""Divergence: KL(reference || other) of one token from the reference's likeliest entries, with bounds on what they omit.

All entries that are not kept form one bucket. The divergence of the kept form is a lower bound of the full one, since
merging outcomes cannot make two distributions easier to tell apart. The upper bound follows from two facts: an entry of the
bucket has at most the probability of the smallest kept entry, and the divergence is convex. It is therefore largest when the
bucket's mass lies in as few entries as possible, namely those that the other model finds least likely.
"""

from __future__ import annotations

import math

import numpy as np

TAIL = 1e-3
MOST = 4096


def bounds(ids: np.ndarray, log_p: np.ndarray, rest: float, logits: np.ndarray) -> tuple[float, float]:
    """Return a lower and an upper bound of the divergence, nats.

    `ids` [k] are the reference's kept entries with log-probabilities `log_p` [k]; `rest` is the log-probability of all other
    entries, -inf if there are none. `logits` [vocab] are the other model's, float64.
    """
    lse, other_rest = log_bucket(logits, ids)
    kept = float(np.sum(np.exp(log_p) * (log_p - (logits[ids] - lse))))
    if rest == -np.inf:
        return kept, kept
    mass, largest = math.exp(rest), math.exp(log_p.min())
    log_q = np.delete(logits, ids) - lse
    count = min(int(mass / largest), len(log_q) - 1)
    least = np.partition(log_q, count)
    left = mass - count * largest
    tail = count * largest * math.log(largest) - largest * float(np.sum(least[:count]))
    tail += left * (math.log(left) - float(least[count])) if left > 0 else 0.0
    low = kept + mass * (rest - other_rest)
    return low, max(low, kept + tail)


def log_bucket(logits: np.ndarray, ids: np.ndarray) -> tuple[float, float]:
    """Return log-sum-exp of `logits` [vocab], float64, and the log-probability of all entries but `ids` (-inf if none)."""
    lse = log_sum_exp(logits)
    return lse, log_sum_exp(np.delete(logits, ids)) - lse


def log_sum_exp(logits: np.ndarray) -> float:
    """Return log(sum(exp(logits))) of any number of float64 logits; -inf if there are none."""
    if not logits.size:
        return -math.inf
    top = float(logits.max())
    return top + math.log(float(np.sum(np.exp(logits - top))))


def likeliest(logits: np.ndarray, tail: float = TAIL, most: int = MOST) -> np.ndarray:
    """Return the ids, ascending, of the fewest entries that leave at most `tail` of the probability, but at most `most`.

    `logits` [vocab] are float64.
    """
    most = min(most, len(logits))
    top = np.argpartition(-logits, most - 1)[:most]
    top = top[np.argsort(-logits[top], kind="stable")]
    held = np.cumsum(np.exp(logits[top] - log_sum_exp(logits)))
    return np.sort(top[: int(np.searchsorted(held, 1 - tail)) + 1])
