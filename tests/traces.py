"""Synthetic routing traces for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def routing(tokens: int, layers: int, top_k: int, experts: int) -> np.ndarray:
    """Expert ids, int32 [tokens, layers, top_k]. They have locality: every second token repeats the experts before it."""
    rng = np.random.default_rng(1)
    out = np.empty((tokens, layers, top_k), np.int32)
    for layer in range(layers):
        current = rng.permutation(experts)[:top_k]
        for token in range(tokens):
            if token % 2:
                current = rng.permutation(experts)[:top_k]
            out[token, layer] = current
    return out


def write_trace(path: Path, experts: np.ndarray, prefilled: int = 0) -> Path:
    """Write a trace in the format of the engine; the first `prefilled` tokens are a prompt."""
    token, layer, rank = (a.reshape(-1) for a in np.indices(experts.shape))
    phase = np.where(token < prefilled, "prefill", "decode")
    columns = {"token": token, "phase": phase, "layer": layer, "rank": rank, "expert": experts.reshape(-1)}
    pd.DataFrame(columns).astype({"token": "int32", "expert": "int16"}).to_parquet(path)
    return path
