"""Measurement: what came out of one run. Together with `Knobs` the whole vocabulary between engine and harness."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Measurement:
    """Figures of one pass of `Engine.measure` over a judge's texts.

    Speed and the counters (`hits` .. `foreseen_share`) cover the decoded tokens alone, not prefill or warm-up;
    quality covers every scored token, prefill and decode. Sizes are 10^9 bytes, times are milliseconds.
    `hit_rate` is null when nothing is streamed: there was nothing to hit. What the system does not say is null.

    A token's wall time (`decode_ms_*`) is its forward pass. What it waits for reads and for the routers' choices comes off
    that, as does the time for bringing experts to another width; what is left is its compute.
    """

    decode_tok_s: float
    prefill_tok_s: float
    decode_tokens: int
    decode_ms_p50: float
    decode_ms_p95: float
    io_ms_per_token: float
    sync_ms_per_token: float
    compute_ms_per_token: float
    peak_memory_gb: float  # high-water mark of the whole process, as the system counts it
    mlx_peak_gb: float  # high-water mark of MLX's own allocations
    perplexity: float
    perplexity_se: float  # see `perplexity`
    nll: float  # mean, nats a token
    scored_tokens: int
    hit_rate: float | None
    bytes_per_token: float
    hits: int
    misses: int
    reads: int
    bytes_read: int
    io_ms: float
    sync_ms: float
    disk_bytes_read: int | None  # while decoding, by this process, as the system counts them
    page_cache_share: float | None  # of the bytes asked for while decoding: those that did not come from the disk
    prefetch_issued: int
    prefetch_useful: int
    prefetch_recall: float | None  # null without prefetch; see Stats for what each says
    prefetch_whole_set: float | None
    prefetch_precision: float | None
    prefetch_coverage: float | None
    prefetch_hidden_ms: float
    prefetch_wasted_bytes: int
    passes_per_window: float | None  # null with sync_window=1
    void_layers: int
    foreseen_share: float | None
    swapped: int  # expert uses that cache_prior changed
    lowbit: int
    raised: int
    dropped: int  # expert uses that cold_drop left out
    dropped_share: float | None  # and their share of the gate weight; null if nothing is streamed
    slots: int  # experts that fit into the cache, over all layers
    cached_share: float  # slots as a share of all routed experts
    average_bits: float  # of the routed experts' weights, all of them
    plan_fingerprint: str | None  # of their bits; null if all have the same
    judge: str  # fingerprint; figures of different judges are not comparable
    mode: str  # which path ran, e.g. "streamed float32 cpu"
    thermal_state: str | None  # this and the next four: at the end
    temperature_c: float | None
    power_source: str | None
    memory_pressure: str | None
    swap_used_bytes: int | None
    throttle_events: int | None  # this and the next two: from start to end
    swap_in_bytes: int | None
    swap_out_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """Name -> value, JSON-ready."""
        return dataclasses.asdict(self)


def perplexity(nll: np.ndarray) -> tuple[float, float]:
    """exp(mean) of the tokens' negative log-likelihoods [tokens, at least 2], nats, and its standard error.

    The error is the mean's, carried through exp to first order. It takes the tokens for independent; those of one text
    are not, so that it says too little rather than too much.
    """
    value = float(np.exp(nll.mean()))
    return value, value * float(nll.std(ddof=1)) / math.sqrt(len(nll))
