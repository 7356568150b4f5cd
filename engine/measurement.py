"""Measurement: what came out of one run. Together with `Knobs` the whole vocabulary between engine and harness."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from .errors import HeadraceError, did_you_mean


@dataclass(frozen=True)
class Measurement:
    """Figures of one pass of `Engine.measure` over a judge's texts. An engine of another make fills what it knows.

    Speed and the counters (`hits` .. `foreseen_share`) cover the timed tokens alone, not prefill or warm-up; quality
    (`perplexity` .. `json_valid`) covers every scored token of the judge, prefill and decode, and is null if not all of
    them were passed through. Sizes are 10^9 bytes, times are milliseconds. `hit_rate` is null when nothing is streamed:
    there was nothing to hit. What the system does not say is null.

    A token's wall time (`decode_ms_*`) is its forward pass. What it waits for reads and for the routers' choices comes off
    that, as does the time for bringing experts to another width; what is left is its compute.
    """

    decode_tok_s: float
    peak_memory_gb: float  # high-water mark of the whole process up to the end of the timed part, as the system counts it
    perplexity: float | None
    _: KW_ONLY
    prefill_tok_s: float | None = None
    decode_tokens: int | None = None
    timed_nll: float | None = None  # mean over the timed part, its prompts included
    ttft_ms: float | None = None  # prefill of a prompt, median of the timed texts
    token_ms: tuple[float, ...] | None = None  # wall time of each timed token, scoring it included
    ended_early: bool = False  # on the word of `keep_going`
    decode_ms_p50: float | None = None
    decode_ms_p95: float | None = None
    io_ms_per_token: float | None = None
    sync_ms_per_token: float | None = None
    compute_ms_per_token: float | None = None
    mlx_peak_gb: float | None = None  # high-water mark of MLX's own allocations
    perplexity_se: float | None = None  # see `perplexity`
    nll: float | None = None  # mean, nats a token
    scored_tokens: int | None = None
    kl: float | None = None  # this and the next: see `engine.quality`, which measures them
    json_valid: float | None = None
    hit_rate: float | None = None
    bytes_per_token: float | None = None
    hits: int | None = None
    misses: int | None = None
    reads: int | None = None
    bytes_read: int | None = None
    io_ms: float | None = None
    sync_ms: float | None = None
    disk_bytes_read: int | None = None  # while decoding, by this process, as the system counts them
    page_cache_share: float | None = None  # of the bytes asked for while decoding: those that did not come from the disk
    page_cached_before: float | None = None  # share of the checkpoint's files in the page cache before they were loaded
    page_cached_after: float | None = None  # and when the clock stopped
    prefetch_issued: int | None = None
    prefetch_useful: int | None = None
    prefetch_recall: float | None = None  # null without prefetch; see Stats for what each says
    prefetch_whole_set: float | None = None
    prefetch_precision: float | None = None
    prefetch_coverage: float | None = None
    prefetch_hidden_ms: float | None = None
    prefetch_wasted_bytes: int | None = None
    passes_per_window: float | None = None  # null with sync_window=1
    void_layers: int | None = None
    foreseen_share: float | None = None
    swapped: int | None = None  # expert uses that cache_prior changed
    lowbit: int | None = None
    raised: int | None = None
    dropped: int | None = None  # expert uses that cold_drop left out
    dropped_share: float | None = None  # and their share of the gate weight; null if nothing is streamed
    slots: int | None = None  # experts that fit into the cache, over all layers
    cached_share: float | None = None  # slots as a share of all routed experts
    average_bits: float | None = None  # of the routed experts' weights, all of them
    plan_fingerprint: str | None = None  # of their bits; null if all have the same
    judge: str | None = None  # fingerprint; figures of different judges are not comparable
    mode: str | None = None  # which path ran, e.g. "streamed float32 cpu"
    device: str | None = None  # what computed: the GPU's name, or the processor's with its cores
    backend: str | None = None  # cpu, cuda or metal
    thermal_state: str | None = None  # this and the next four: when the clock stopped
    temperature_c: float | None = None
    power_source: str | None = None
    memory_pressure: str | None = None
    swap_used_bytes: int | None = None
    throttle_events: int | None = None  # this and the next two: from start to then
    swap_in_bytes: int | None = None
    swap_out_bytes: int | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Measurement:
        """A measurement from plain names and values, as an engine behind a command gives it.

        Raises `HeadraceError` for an unknown name, a missing one, and a value of another type or not finite.
        """
        fields = {f.name: str(f.type) for f in dataclasses.fields(cls)}
        for name in REQUIRED:
            if name not in values:
                raise HeadraceError(f"the figures lack {name}; an engine gives at least {', '.join(REQUIRED)}")
        for name, value in values.items():
            if name not in fields:
                raise HeadraceError(f"{name} is not a figure; {did_you_mean(name, list(fields))}")
            if not _fits(value, fields[name]):
                raise HeadraceError(
                    f"{name}={value!r:.60} is not a figure of its kind ({fields[name]}, finite); mend the engine"
                )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The figures: name -> value, JSON-ready. Without `token_ms` and `ended_early`, which say how they came about."""
        return {name: value for name, value in vars(self).items() if name not in ("token_ms", "ended_early")}


REQUIRED = ("decode_tok_s", "peak_memory_gb", "perplexity")


def _fits(value: Any, annotation: str) -> bool:
    if value is None:
        return "None" in annotation
    if annotation.startswith("tuple"):
        return isinstance(value, list | tuple) and all(_fits(item, "float") for item in value)
    kind = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}[annotation.split(" |")[0]]
    return isinstance(value, kind) and isinstance(value, bool) == (kind == (bool,)) and _finite(value)


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def perplexity(nll: np.ndarray) -> tuple[float, float]:
    """exp(mean) of the tokens' negative log-likelihoods [tokens, at least 2], nats, and its standard error.

    The error is the mean's, carried through exp to first order. It takes the tokens for independent; those of one text
    are not, so that it says too little rather than too much.
    """
    value = float(np.exp(nll.mean()))
    return value, value * float(nll.std(ddof=1)) / math.sqrt(len(nll))
