"""Timed pass: one pass over the evaluation texts, whose first part runs against the clock.

The timed part is the same to the last operation whether or not the rest is scored after it, so scoring does not change the
speed. A prompt is computed, or the state after it is restored; then the prefill has no speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.errors import FigureError
from engine.knobs import GB
from engine.model.backend import backend, device_name, peak_bytes
from engine.stats import Stats
from engine.system.machine_state import machine_state
from engine.system.memory import disk_bytes_read, disk_bytes_written, page_cache_share
from engine.system.meters.energy import Energy, energy
from engine.system.page_cache import cached_share

from .measurement import Measurement, perplexity
from .not_finite import check_nll
from .protocol import REAL, RESTORED, UNTIMED
from .read_source import source_of
from .spans import FILL, PREFIX, Spans

Scored = Iterator[tuple[mx.array, list[int]]]  # logits, float32 [tokens, vocab], and the tokens that follow
KeepGoing = Callable[[list[float]], bool] | None
KeepScoring = Callable[[list[np.ndarray], float, float], bool] | None  # nll so far in parts, tokens/s, peak memory in GB
# Around the scoring, after so many texts had begun and with the counters of the timed tokens; the share of experts cached.
Scoring = Callable[[int, Stats], AbstractContextManager[float | None]]


@dataclass(frozen=True)
class Prefilled:
    """A prompt that was brought into the model in `ms` milliseconds, None without the clock. `nll`: of its tokens after the
    first and of the one that follows, nats, float64 [tokens]. `restored`: its state was read, not computed. `mlx_peak`:
    MLX's high-water mark before its last reset, bytes."""

    nll: np.ndarray
    ms: float | None
    restored: bool = False
    mlx_peak: int = 0


Prompt = Callable[[bool], Prefilled]  # called once, with whether it is of the timed part


def computed(passes: Scored) -> Prefilled:
    """A prompt that is computed by exhausting `passes`, against the clock."""
    begin = time.perf_counter()
    found = [token_nll(logits, targets) for logits, targets in passes]
    return Prefilled(np.concatenate(found), (time.perf_counter() - begin) * 1e3)


@dataclass
class _Timed:
    """Samples of the timed part."""

    decoded: Stats  # counters of the timed tokens
    prefill_ms: list[float | None] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)
    nll: list[np.ndarray] = field(default_factory=list)
    prefilled: int = 0
    restored: bool = False  # at least one prompt
    mlx_peak: int = 0  # before the last reset, bytes
    disk_read: int = 0
    energy_j: float | None = None  # of the decoding; None if unknown
    ended_early: bool = False
    rest: Scored = field(default_factory=lambda: iter(()))  # the continuation that the clock stopped in


def timed_pass(
    texts: Iterator[tuple[Prompt, Scored]],
    stats: Stats,
    files: Sequence[Path],
    *,
    timed_tokens: int,
    score: bool = True,
    keep_going: KeepGoing = None,
    keep_scoring: KeepScoring = None,
    spans: Spans | None = None,
    scoring: Scoring = lambda begun, timed: nullcontext(),
) -> tuple[Measurement, Stats]:
    """Run through `texts` (prompt, pass over the continuation) and return the figures and the timed tokens' counters.

    The clock covers the first `timed_tokens` decoded tokens. Every token after a text's first is scored; speed and counters
    cover the decoding of the timed tokens only. With `score` the rest of the texts follows without a clock and gives
    perplexity, unless `keep_scoring` returns False before its end. `stats` are the engine's counters, which the passes
    advance; `files` hold its weights; `spans` has the time before this pass (warm-up) and receives that of the prompts;
    `scoring` is entered around the scoring.
    Fields that only the engine knows (slots, bits, mode, judge) are null. Raises `FigureError` at the first logits that are
    not finite.
    """
    at_start = machine_state()
    stats.reset()
    spans = spans or Spans()
    timed = _timed(texts, stats, timed_tokens, keep_going, spans)
    spent = spans.take()  # here, because the rest of the pass is scoring
    at_end, mlx_peak = machine_state(), max(timed.mlx_peak, mx.get_peak_memory())
    peak = peak_bytes(mlx_peak)
    written = disk_bytes_written()
    cached_after = cached_share(files)
    nll = np.concatenate(timed.nll)
    prefill_ms = [ms for ms in timed.prefill_ms if ms is not None]
    clocked = len(prefill_ms) == len(timed.prefill_ms)
    decoded, times = timed.decoded, timed.decoded.by_token()
    disk = None if disk_bytes_read() is None else timed.disk_read
    share = page_cache_share(disk, decoded.bytes_read)
    speed = _per_s(decoded.tokens, timed.token_ms, "decode_tok_s")
    quality: dict[str, Any] = {"perplexity": None}
    if score and not timed.ended_early:
        parts, stopped = [nll], False
        with scoring(len(timed.prefill_ms), decoded) as share_cached:
            for part in _untimed(timed.rest, texts):
                parts.append(part)
                if keep_scoring is not None and not keep_scoring(parts, speed, peak / GB):
                    stopped = True
                    break
        quality = {**_scored(np.concatenate(parts), stopped), "scoring_cached_share": share_cached}
    measurement = Measurement(
        decode_tok_s=speed,
        prefill=RESTORED if timed.restored else REAL if clocked else UNTIMED,
        prefill_tok_s=_per_s(timed.prefilled, prefill_ms, "prefill_tok_s") if clocked else None,
        decode_tokens=decoded.tokens,
        timed_nll=float(nll.mean()),
        ttft_ms=statistics.median(prefill_ms) if clocked else None,
        prefix_s=spent.get(PREFIX),
        fill_s=spent.get(FILL),
        timed_s=sum(timed.token_ms) / 1e3,
        token_ms=tuple(timed.token_ms),
        ended_early=timed.ended_early,
        decode_ms_p50=float(np.quantile(times["wall_ms"], 0.5)),
        decode_ms_p95=float(np.quantile(times["wall_ms"], 0.95)),
        io_ms_per_token=float(times["io_ms"].mean()),
        sync_ms_per_token=float(times["sync_ms"].mean()),
        compute_ms_per_token=float(times["compute_ms"].mean()),
        peak_memory_gb=peak / GB,
        mlx_peak_gb=mlx_peak / GB,
        **quality,
        **{name: value for name, value in decoded.as_dict().items() if name in Measurement.names()},
        bytes_per_token=decoded.bytes_read / decoded.tokens,
        layers_missed_per_token=decoded.layers_missed / decoded.tokens,
        disk_bytes_read=disk,
        disk_bytes_written=written,
        energy_j=timed.energy_j,
        energy_j_per_1k_tokens=None if timed.energy_j is None else 1e3 * timed.energy_j / decoded.tokens,
        page_cache_share=share,
        read_source=source_of(share),
        page_cached_after=cached_after,
        device=device_name(),
        backend=backend(),
        **{**vars(at_end), **at_end.counts_since(at_start)},
    )
    return measurement, decoded


def _scored(terms: np.ndarray, stopped: bool) -> dict[str, Any]:
    """The figures of the scored tokens; of a scoring that ended early only their number, and no perplexity."""
    if stopped:
        return {"perplexity": None, "scored_tokens": len(terms), "scoring_stopped": True}
    value, error = perplexity(terms)
    return {
        "perplexity": value, "perplexity_se": error, "nll": float(terms.mean()), "scored_tokens": len(terms),
        "token_nll": tuple(terms.tolist()),
    }  # fmt: skip


def _timed(
    texts: Iterator[tuple[Prompt, Scored]], stats: Stats, timed_tokens: int, keep_going: KeepGoing, spans: Spans
) -> _Timed:  # fmt: skip
    """Run the timed part: prefill prompts and decode until `timed_tokens` tokens are timed or `keep_going` returns False."""
    timed = _Timed(stats.copy())
    for prompt, continuation in texts:
        with spans.part(PREFIX):
            found = prompt(True)
        timed.prefill_ms.append(found.ms)
        timed.prefilled += len(found.nll)
        timed.restored |= found.restored
        timed.mlx_peak = max(timed.mlx_peak, found.mlx_peak)
        timed.nll.append(check_nll(found.nll, f"a prompt of {len(found.nll)} tokens"))
        counted = stats.copy()
        timed.disk_read -= disk_bytes_read() or 0
        counters = energy()
        while not timed.ended_early and len(timed.token_ms) < timed_tokens:
            begin = time.perf_counter()
            step = next(continuation, None)
            if step is None:
                break
            nll = token_nll(*step)
            timed.token_ms.append((time.perf_counter() - begin) * 1e3)
            timed.nll.append(check_nll(nll, f"timed token {len(timed.token_ms)}"))
            timed.ended_early = keep_going is not None and not keep_going(timed.token_ms)
        timed.disk_read += disk_bytes_read() or 0
        timed.energy_j = _added(timed.energy_j, counters, energy())
        timed.decoded.add(stats, since=counted)
        if timed.ended_early or len(timed.token_ms) == timed_tokens:
            timed.rest = continuation
            break
    return timed


def _untimed(rest: Scored, texts: Iterator[tuple[Prompt, Scored]]) -> Iterator[np.ndarray]:
    """Yield what the tokens after the timed part cost, nats: the rest of the text that the clock stopped in, and `texts`."""
    yield from (check_nll(token_nll(*step), "an untimed token") for step in rest)
    for prompt, continuation in texts:
        yield check_nll(prompt(False).nll, "an untimed token")
        yield from (check_nll(token_nll(*step), "an untimed token") for step in continuation)


def _per_s(tokens: int, ms: Sequence[float], name: str) -> float:
    """Tokens per second. Raises `FigureError` for tokens that took no time by the clock."""
    if not sum(ms) > 0:
        raise FigureError(f"{name} is not finite: {tokens} tokens took {sum(ms):g} ms by the clock; measure more tokens")
    return 1e3 * tokens / sum(ms)


def _added(joules: float | None, start: Energy | None, end: Energy | None) -> float | None:
    """`joules` and what was spent from `start` to `end`; unchanged if that is unknown."""
    spent = None if start is None or end is None else end.since(start)
    return joules if spent is None else (joules or 0.0) + spent


def token_nll(logits: mx.array, targets: list[int]) -> np.ndarray:
    """Return the negative log-likelihoods of `targets` under float32 logits [targets, vocab], nats, float64 [targets].

    The log-sum is MLX's in float32, as in mlx-lm's perplexity. On the CPU it is a sequential sum: with a vocabulary of 4,096
    the mean comes out about 1e-5 too low.
    """
    chosen = mx.take_along_axis(logits, mx.array(targets)[:, None], axis=-1)[:, 0]
    return np.array(mx.logsumexp(logits, axis=-1) - chosen, dtype=np.float64)
