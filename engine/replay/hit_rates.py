"""Hit rates: a recorded routing trace under each eviction policy, layer by layer, without a model or a disk.

It takes seconds and shows what a policy gains on a model's routing, beside Belady's optimum, which knows the future. The
prompt is replayed token by token, so these are not the engine's own figures (`replay`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.cache.eviction import NO_EXPERTS, DecayedFrequency, SlotTable
from engine.errors import HeadraceError
from engine.routing.belady import belady_misses
from engine.routing.read import Trace


def hit_rate(trace: Trace, experts: int, slots: int, half_life: float, pinned_share: float = 0.0) -> float:
    """Hit rate of the decoded tokens with `slots` slots per layer for `experts` experts; the prompt warms the cache.

    With `pinned_share`, that share of the slots is pinned to the experts that the prompt and the first half of the decoded
    tokens use most, and only the second half counts, so that pinning has no knowledge of the future.
    """
    tokens, layers, _ = trace.experts.shape
    begin = (trace.prefilled + tokens) // 2 if pinned_share else trace.prefilled
    hits = requests = 0
    for layer in range(layers):
        chosen = trace.experts[:, layer]
        policy = DecayedFrequency(experts, half_life)
        seen = chosen[:begin]
        most_used = np.argsort(-np.bincount(seen[seen >= 0], minlength=experts), kind="stable")
        pinned = most_used[: round(pinned_share * slots)] if pinned_share else NO_EXPERTS
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
    """Hit rate of the decoded tokens under Belady's optimum, which evicts the expert whose next use is farthest away."""
    misses = 0
    for layer in range(trace.experts.shape[1]):
        chosen = [ids if ids[0] >= 0 else [] for ids in trace.experts[:, layer].tolist()]
        misses += sum(belady_misses(chosen, slots)[trace.prefilled :])
    return 1 - misses / trace.experts[trace.prefilled :].size


def replay_table(trace: Trace, experts: int, slots: list[int], half_lives: list[float]) -> list[dict[str, Any]]:
    """Hit rates of each half-life and of Belady's optimum, for each number of slots per layer; one dict per policy."""
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
