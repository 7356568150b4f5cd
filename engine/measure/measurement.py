"""Measurement: the figures of one run. With `Knobs` it is all that engine and harness exchange."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING, dataclass
from typing import Any

import numpy as np

from engine.errors import FigureError, HeadraceError, did_you_mean
from engine.system.strict_json import refuse_not_finite

SPEED_NOISE = 0.10
LARGEST_NLL = 700.0  # nats; exp of 709.8 is beyond a float


def figure(
    text: str, unit: str = "", *, default: Any = None, short: str = "", better: str = "", speed: bool = False,
    quality: bool = False, noise: float = 0.0,
) -> Any:  # fmt: skip
    """Return a dataclass field with the texts of a figure for tables, axes and the documentation.

    `short`: name and unit in a table; `better`: maximize or minimize, if a study may optimise it; `speed`: it varies between
    runs; `quality`: it depends on the lossy knobs only; `noise`: relative standard deviation of a run, assumed until a
    setting is measured twice.
    """
    noise = SPEED_NOISE if speed else noise
    metadata = {
        "text": text, "unit": unit, "short": short, "better": better, "speed": speed, "quality": quality, "noise": noise,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Measurement:
    """Figures of one pass of `Engine.measure` over evaluation texts. Another engine sets the figures that it knows.

    Speed and the counters (`hits` .. `dropped_share`) cover the timed tokens only, without prefill and warm-up. Quality
    (`perplexity`, `kl`, `json_valid`) covers every scored token, prefill and decode, and is null unless all of
    them were scored. Sizes are 10^9 bytes, times are milliseconds. `hit_rate` is null when nothing is streamed. Values that
    the system does not report are null.

    A token's wall time (`decode_ms_*`) is its forward pass. Its compute time is the wall time minus the waits for reads and
    for the routers' choices, and minus the time to bring experts to another width.

    Every figure is finite or null: a measurement with another raises `FigureError`.
    """

    # fmt: off
    decode_tok_s: float = figure(
        "speed of the timed tokens, or of those timed so far if the run was stopped", "tokens/s", short="tok/s",
        better="maximize", speed=True, default=MISSING)
    peak_memory_gb: float = figure(
        "high-water mark of the run's process up to the end of the timed part, on CUDA with MLX's allocations", "GB",
        short="GB", better="minimize", noise=0.005, default=MISSING)
    perplexity: float | None = figure("exp of nll", short="ppl", better="minimize", quality=True, default=MISSING)
    _: KW_ONLY
    prefill: str | None = figure(
        "how prompts came into the model: real (computed against the clock), untimed (computed without it, to be kept) "
        "or restored (at least one was read as it was kept)")
    prefill_tok_s: float | None = figure(
        "speed of the prompts; null unless prefill=real", "tokens/s", short="prefill tok/s", better="maximize", speed=True)
    ttft_ms: float | None = figure(
        "time to first token: prefill of a prompt, median of the timed texts; null unless prefill=real", "ms",
        short="ms TTFT", better="minimize", speed=True)
    kl: float | None = figure(
        "mean KL divergence from the reference's next-token distribution; null if not asked for", "nats", short="nats KL",
        better="minimize", quality=True)
    json_valid: float | None = figure(
        "share of the JSON prompts completed to a valid object; null if not asked for", quality=True)
    bytes_per_token: float | None = figure(
        "bytes read per decoded token", "bytes", short="bytes/token", better="minimize")
    hit_rate: float | None = figure(
        "share of expert uses found in the cache while decoding; null if nothing streams", short="hit")
    nll: float | None = figure("mean negative log-likelihood of the scored tokens", "nats")
    perplexity_se: float | None = figure("standard error of perplexity, with tokens treated as independent")
    scored_tokens: int | None = figure("number of scored tokens, prompts and continuations")
    scoring_cached_share: float | None = figure(
        "share of the experts that the cache holds while the rest is scored after the timed part; above cached_share if a "
        "larger cache replaced the timed setting's; null without scoring")
    decode_tokens: int | None = figure("number of tokens that speed and counters cover")
    timed_nll: float | None = figure(
        "nll of the timed part only, prompts included; lossless knobs must not change it", "nats")
    decode_ms_p50: float | None = figure("wall time of a decoded token, its forward pass alone: median", "ms")
    decode_ms_p95: float | None = figure("wall time of a decoded token, its forward pass alone: 95th percentile", "ms")
    io_ms_per_token: float | None = figure("mean time per decoded token that waits for reads", "ms")
    sync_ms_per_token: float | None = figure(
        "mean time per decoded token that waits for the routers' choices, queued compute included", "ms")
    compute_ms_per_token: float | None = figure(
        "mean time per decoded token without these waits and the time to change widths", "ms")
    mlx_peak_gb: float | None = figure("high-water mark of MLX's own allocations", "GB")
    mlx_cache_limit_gb: float | None = figure("limit of MLX's cache of freed buffers, part of the predicted peak", "GB")
    prefix_s: float | None = figure(
        "time to bring the prompts of the timed texts into the model's caches: computed, or restored", "s")
    fill_s: float | None = figure("time to fill the experts' cache before the clock starts, warm-up tokens included", "s")
    timed_s: float | None = figure("time of the timed tokens' forward passes", "s")
    fill_bytes: int | None = figure(
        "bytes read to give the experts' cache its state before the clock starts; null if nothing streams", "bytes")
    hits: int | None = figure("expert uses found in the cache while decoding")
    misses: int | None = figure("expert uses that had to be read while decoding")
    layers_missed_per_token: float | None = figure(
        "mean number of layers that missed at least one expert, per decoded token")
    reads: int | None = figure("read calls while decoding")
    bytes_read: int | None = figure("bytes read while decoding", "bytes")
    io_ms: float | None = figure("total time that decoding waits for reads", "ms")
    sync_ms: float | None = figure("total time that decoding waits for the routers' choices", "ms")
    quantize_ms: float | None = figure("total time to bring experts to another width while decoding", "ms")
    disk_bytes_read: int | None = figure(
        "bytes read from the disk while decoding, as the system counts them for the process", "bytes")
    disk_bytes_written: int | None = figure(
        "bytes that the run's process wrote to the disk, from its start to the end of the timed part", "bytes")
    energy_j: float | None = figure(
        "energy of the timed decoding: of the run's process (macOS: ri_billed_energy, read as nJ) or of the processor "
        "packages (Linux: RAPL); null where the system does not report it", "J")
    energy_j_per_1k_tokens: float | None = figure(
        "energy_j per 1,000 timed tokens", "J", short="J/1k tokens")
    page_cache_share: float | None = figure("share of bytes_read that did not come from the disk; null if nothing was read")
    read_source: str | None = figure(
        "source of bytes_read by the system's count: disk, cache or both; cache also for disks that are not counted")
    page_cached_before: float | None = figure("share of the checkpoint's files in the page cache before they were loaded")
    page_cached_after: float | None = figure("share of the checkpoint's files in the page cache when the clock stopped")
    prefetch_issued: int | None = figure("experts read ahead of their use")
    prefetch_useful: int | None = figure("experts read ahead and used by the layer they were read for")
    prefetch_recall: float | None = figure("share of the experts used that prefetch predicted, cached or not")
    prefetch_exact_set: float | None = figure("share of the layers whose experts prefetch predicted completely")
    prefetch_precision: float | None = figure("share of the bytes read ahead that were used")
    prefetch_coverage: float | None = figure("share of the misses that prefetch avoided")
    prefetch_hidden_ms: float | None = figure(
        "total time that useful prefetch reads had run when their experts were needed", "ms")
    prefetch_wasted_bytes: int | None = figure("bytes read ahead and not used", "bytes")
    passes_per_window: float | None = figure(
        "passes per window of layers, 1 if nothing was missing; null if sync_window=1")
    rejected_layers: int | None = figure("layers computed in rejected passes, after the first layer that missed an expert")
    window_prediction_recall: float | None = figure(
        "share of the experts used after a window's miss that its rejected passes had predicted")
    swapped: int | None = figure("expert uses that cache_prior changed to a cached expert while decoding")
    dropped: int | None = figure("expert uses that cold_drop left out while decoding")
    dropped_share: float | None = figure("share of all layers' gate weight that cold_drop left out; null if nothing streams")
    slots: int | None = figure("experts that fit into the cache, over all layers")
    cached_share: float | None = figure("slots as a share of all routed experts")
    prefill_chunk_used: int | None = figure(
        "prefill chunk that ran: that of the knob, or what auto chose on this machine", "tokens")
    average_bits: float | None = figure("mean bits of all routed experts' weights, without scales and biases", "bits")
    plan_fingerprint: str | None = figure("fingerprint of every expert's bits; null if all have the same")
    eval_fingerprint: str | None = figure(
        "fingerprint of the evaluation texts and the metric; rows with different ones are not comparable")
    mode: str | None = figure("path of the engine that ran, e.g. streamed float32 cpu")
    device: str | None = figure("GPU, or processor with its cores; a label in older rows")
    backend: str | None = figure("MLX backend: cpu, cuda or metal; null if the engine does not report it")
    thermal_state: str | None = figure("thermal state after the measurement: nominal, fair, serious or critical (macOS)")
    thermal_pressure: str | None = figure(
        "thermal pressure after the measurement: nominal, moderate (throttling has begun), heavy, trapping or sleeping "
        "(macOS)")
    temperature_c: float | None = figure("temperature of the hottest zone after the measurement (Linux)", "°C")
    throttle_events: int | None = figure("thermal throttle events during the measurement, summed over logical cores (Linux)")
    power_source: str | None = figure("power source after the measurement: ac, battery or ups")
    memory_pressure: str | None = figure("memory pressure after the measurement: normal, warning or critical (macOS)")
    swap_used_bytes: int | None = figure("swap in use on the machine after the measurement", "bytes")
    swap_total_bytes: int | None = figure("size of the machine's swap after the measurement", "bytes")
    swap_in_bytes: int | None = figure("bytes swapped in during the measurement, whole machine", "bytes")
    swap_out_bytes: int | None = figure("bytes swapped out during the measurement, whole machine", "bytes")
    # fmt: on
    token_ms: tuple[float, ...] | None = None  # wall time of each timed token, scoring it included
    ended_early: bool = False  # `keep_going` returned False
    token_nll: tuple[float, ...] | None = None  # nll of each scored token; null unless all were scored
    scoring_stopped: bool = False  # `keep_scoring` returned False; scored_tokens is the number scored until then

    def __post_init__(self) -> None:
        refuse_not_finite(vars(self), "this measurement", "the checkpoint, a lossy knob or the engine is broken")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Measurement:
        """Return a measurement from names and values, such as an engine adapter's output.

        Raises `HeadraceError` for an unknown or missing name, and for a value of the wrong type or that is not finite.
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
                    f"{name}={value!r:.60} has the wrong type (expected {fields[name]}, finite); fix the engine"
                )
        return cls(**values)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all figures, without the raw data and marks behind them."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata)

    def as_dict(self) -> dict[str, Any]:
        """Return name -> value of all figures, JSON-ready."""
        return {name: getattr(self, name) for name in self.names()}


REQUIRED = tuple(f.name for f in dataclasses.fields(Measurement) if f.default is MISSING)


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
    """Return exp(mean) of the tokens' negative log-likelihoods [tokens, at least 2], nats, and its standard error.

    The error of the mean is propagated through exp to first order. It treats tokens as independent. Tokens of one text are
    not, so it is too small rather than too large. Raises `FigureError` for a mean whose exp is not finite.
    """
    mean = float(nll.mean())
    if not mean < LARGEST_NLL:
        raise FigureError(
            f"perplexity is not finite: the mean nll of {len(nll)} tokens is {mean:.4g} nats; the checkpoint is broken, or "
            "a lossy knob is far too strong"
        )
    value = math.exp(mean)
    return value, value * float(nll.std(ddof=1)) / math.sqrt(len(nll))
