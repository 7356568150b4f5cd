"""Divergence computed from whole distributions."""

from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def whole_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    log_p, log_q = log_softmax(p), log_softmax(q)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
