"""Measuring: one pass over a judge's texts, the first part of it against the clock.

The timed part is the same to the last operation whether or not the rest is scored after it: what is known of a setting's
quality changes nothing about its speed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from engine.errors import JudgeError
from engine.knobs import GB
from engine.model.backend import backend, device_name
from engine.system.machine_state import machine_state
from engine.system.memory import disk_bytes_read, page_cache_share, peak_memory_bytes
from engine.system.page_cache import cached_share, weight_files

from .judge import Judge
from .measurement import Measurement, perplexity
from .protocol import Protocol

if TYPE_CHECKING:
    from engine.engine import Engine


def measure(
    engine: Engine, judge: Judge, protocol: Protocol, keep_going: Callable[[list[float]], bool] | None = None
) -> Measurement:
    """What `Engine.measure` says: prompts are prefilled, continuations decoded token by token, and every token after a
    text's first is scored. Speed and counters are of the timed tokens' decoding alone."""
    most = engine.continuation_tokens(judge)
    if (protocol.timed_tokens or 0) > most:
        raise JudgeError(
            f"timed_tokens={protocol.timed_tokens} is above the {most} tokens that the judge's continuations hold; "
            "lower it, or leave it unset to time them all"
        )
    timed_tokens = protocol.timed_tokens or most
    texts = engine.teacher_forced(judge, protocol)
    at_start, stats = machine_state(), engine.stats
    stats.reset()
    decoded = engine.decoded = stats.copy()
    prefill_ms: list[float] = []
    token_ms: list[float] = []
    nll: list[np.ndarray] = []
    prefilled = disk_read = 0
    going = True
    for prompt, continuation in texts:
        before, begin = stats.tokens, time.perf_counter()
        nll += [token_nll(logits, targets) for logits, targets in prompt]
        prefill_ms.append((time.perf_counter() - begin) * 1e3)
        prefilled += stats.tokens - before
        counted = stats.copy()
        disk_read -= disk_bytes_read() or 0
        while going and len(token_ms) < timed_tokens:
            begin = time.perf_counter()
            step = next(continuation, None)
            if step is None:
                break
            nll.append(token_nll(*step))
            token_ms.append((time.perf_counter() - begin) * 1e3)
            going = keep_going is None or keep_going(token_ms)
        disk_read += disk_bytes_read() or 0
        decoded.add(stats, since=counted)
        if not going or len(token_ms) == timed_tokens:
            break
    at_end, peak, mlx_peak = machine_state(), peak_memory_bytes(), mx.get_peak_memory()
    cached_after = cached_share(weight_files(engine.checkpoint.path))
    timed = np.concatenate(nll)
    disk = None if disk_bytes_read() is None else disk_read
    times = decoded.by_token()
    quality: dict[str, Any] = {"perplexity": None}
    if protocol.score and going:
        left = itertools.chain.from_iterable(itertools.chain(*passes) for passes in texts)
        rest = itertools.chain(continuation, left)
        terms = np.concatenate([timed, *(token_nll(logits, targets) for logits, targets in rest)])
        value, error = perplexity(terms)
        quality = {"perplexity": value, "perplexity_se": error, "nll": float(terms.mean()), "scored_tokens": len(terms)}
    slots = sum(bank.table.slots for stream in engine.streams for bank in stream.banks)
    experts = sum(layer.experts for layer in engine.checkpoint.layers)
    counters = {name: value for name, value in decoded.as_dict().items() if name in Measurement.names()}
    if engine.knobs.cache_gb is None:
        counters["hit_rate"] = None
    return Measurement(
        decode_tok_s=1e3 * decoded.tokens / sum(token_ms),
        prefill_tok_s=1e3 * prefilled / sum(prefill_ms),
        decode_tokens=decoded.tokens,
        timed_nll=float(timed.mean()),
        ttft_ms=statistics.median(prefill_ms),
        token_ms=tuple(token_ms),
        ended_early=not going,
        decode_ms_p50=float(np.quantile(times["wall_ms"], 0.5)),
        decode_ms_p95=float(np.quantile(times["wall_ms"], 0.95)),
        io_ms_per_token=float(times["io_ms"].mean()),
        sync_ms_per_token=float(times["sync_ms"].mean()),
        compute_ms_per_token=float(times["compute_ms"].mean()),
        peak_memory_gb=peak / GB,
        mlx_peak_gb=mlx_peak / GB,
        **quality,
        **counters,
        bytes_per_token=decoded.bytes_read / decoded.tokens,
        disk_bytes_read=disk,
        page_cache_share=page_cache_share(disk, decoded.bytes_read),
        page_cached_before=engine.page_cached_before,
        page_cached_after=cached_after,
        slots=slots if engine.streams else experts,
        cached_share=slots / experts if engine.streams else 1.0,
        average_bits=engine.bits.average_bits,
        plan_fingerprint=engine.bits.fingerprint,
        eval_fingerprint=judge.fingerprint,
        mode=engine.mode,
        device=device_name(),
        backend=backend(),
        **{**vars(at_end), **at_end.counts_since(at_start)},
    )


def token_nll(logits: mx.array, targets: list[int]) -> np.ndarray:
    """Negative log-likelihoods of `targets` under float32 logits [targets, vocab], nats, float64 [targets].

    The log-sum is MLX's in float32, as in mlx-lm's perplexity. On the CPU it adds one by one: with a vocabulary of 4,096
    the mean comes out about 1e-5 too low.
    """
    chosen = mx.take_along_axis(logits, mx.array(targets)[:, None], axis=-1)[:, 0]
    return np.array(mx.logsumexp(logits, axis=-1) - chosen, dtype=np.float64)
