"""Replay: routing traces of real runs, put through the caches of our policies without a model or a disk.

A trace is Parquet, one row a routed slot: `token`, `phase` (prefill | decode), `layer`, `rank`, `expert`, `gate_weight`.
Replaying says what a policy is worth on another model's routing in seconds; Belady's optimum, which knows the future, is
the yardstick. It does not say what is fast: only a run does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine.errors import HeadraceError

from .eviction import NOBODY, DecayedFrequency, SlotTable, belady_misses

COLUMNS = ("token", "phase", "layer", "rank", "expert")


@dataclass(frozen=True)
class Trace:
    """The experts that were chosen: int32 [tokens, layers, top-k]; the first `prefilled` tokens were a prompt, of which
    some engines do not compute the last layer: -1 there."""

    path: Path
    experts: np.ndarray
    prefilled: int

    @property
    def shape(self) -> str:
        tokens, layers, top_k = self.experts.shape
        return f"{tokens} tokens, {layers} layers, top-{top_k}, experts up to {self.experts.max()}"


def read_trace(path: str | Path) -> Trace:
    """Read a trace. Raises `HeadraceError` for a file that is none, or in which a slot is missing or doubled."""
    path = Path(path)
    try:
        rows = pd.read_parquet(path, columns=list(COLUMNS))
    except (OSError, ValueError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise HeadraceError(f"trace {path} cannot be read ({reason}); give Parquet with {', '.join(COLUMNS)}") from e
    codes = {name: np.unique(rows[name], return_inverse=True) for name in ("token", "layer", "rank")}
    shape = tuple(len(values) for values, _ in codes.values())
    experts = np.full(shape, -1, np.int32)
    experts[tuple(at for _, at in codes.values())] = rows["expert"]
    prefilled = int(rows.loc[rows["phase"] == "prefill", "token"].nunique())
    decoded = np.sort(experts[prefilled:], axis=-1)
    if not decoded.size or (decoded < 0).any() or (np.diff(decoded, axis=-1) == 0).any() or rows.duplicated().any():
        raise HeadraceError(
            f"trace {path}: its {len(decoded)} decoded tokens do not have {shape[2]} different experts in each of "
            f"{shape[1]} layers; record it again"
        )
    return Trace(path, experts, prefilled)


def hit_rate(trace: Trace, experts: int, slots: int, half_life: float, pinned_share: float = 0.0) -> float:
    """Hits of the decoded tokens, as a share, with `slots` a layer out of `experts`; the prompt warms the cache.

    Pinned are the experts that the prompt and the first half of the decoded tokens used the most; hits count in the second
    half then, so that nothing is known of the future.
    """
    tokens, layers, _ = trace.experts.shape
    begin = (trace.prefilled + tokens) // 2 if pinned_share else trace.prefilled
    hits = requests = 0
    for layer in range(layers):
        chosen = trace.experts[:, layer]
        policy = DecayedFrequency(experts, half_life)
        seen = chosen[:begin]
        most_used = np.argsort(-np.bincount(seen[seen >= 0], minlength=experts), kind="stable")
        pinned = most_used[: round(pinned_share * slots)] if pinned_share else NOBODY
        table = SlotTable(np.arange(experts), slots, policy, np.full(experts, -1, np.int32), pinned)
        table.demand(pinned, pinned)
        for time, ids in enumerate(chosen, start=1):
            if ids[0] < 0:
                continue
            missing = len(table.demand(ids, ids))
            if time > begin:
                hits += len(ids) - missing
                requests += len(ids)
            policy.use(ids, time)
    return hits / requests


def belady_hit_rate(trace: Trace, slots: int) -> float:
    """The same with Belady's optimum: out goes the expert whose next use is farthest away."""
    misses = 0
    for layer in range(trace.experts.shape[1]):
        chosen = [ids if ids[0] >= 0 else [] for ids in trace.experts[:, layer].tolist()]
        misses += sum(belady_misses(chosen, slots)[trace.prefilled :])
    return 1 - misses / trace.experts[trace.prefilled :].size


def overlap(trace: Trace) -> float:
    """Share of the decoded tokens' experts that the layer had chosen for the token before."""
    first = max(trace.prefilled, 1)
    same = (trace.experts[first:, :, :, None] == trace.experts[first - 1 : -1, :, None, :]).any(axis=-1)
    return float(same.mean())


def replay_table(trace: Trace, experts: int, slots: list[int], half_lives: list[float]) -> list[dict[str, Any]]:
    """Hit rates of every half-life and of Belady at every number of slots a layer; one dict a policy."""
    top_k = trace.experts.shape[-1]
    for count in slots:
        if not top_k <= count <= experts:
            raise HeadraceError(f"--slots {count} is outside {top_k} .. {experts} for {trace.path}; a token needs {top_k}")
    rows: list[dict[str, Any]] = []
    for half_life in half_lives:
        name = {0.0: "LRU (half-life 0)", float("inf"): "LFU (half-life inf)"}.get(half_life, f"half-life {half_life:g}")
        rows.append({"policy": name, **{str(n): hit_rate(trace, experts, n, max(half_life, 1e-6)) for n in slots}})
    rows.append({"policy": "Belady (knows the future)", **{str(n): belady_hit_rate(trace, n) for n in slots}})
    return rows
