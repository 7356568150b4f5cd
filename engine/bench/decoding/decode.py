"""bench decode: decoding at several cache sizes against the resident model and both ceilings, in one run.

The tokens are those of the evaluation texts. For a model of random weights, whose own routing would collapse, the routing is
forced from a recorded trace (`forced_routing`), with and without a limit on the recall of rejected passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.effective import effective
from engine.engine import Engine, load
from engine.errors import HeadraceError
from engine.knobs import CACHE_DEPENDENT, GB, LOSSY, NEEDS_MISSES, Knobs
from engine.measure.judge import Judge
from engine.plan.footprint import weights_of
from engine.routing.read import Trace
from engine.stats import Stats

from ..contender import Contender, in_turns, spread
from ..machine.plain_reads import plain_gbps
from .decode_table import print_table
from .forced_routing import ForcedRouting


@dataclass(frozen=True)
class Setting:
    """One setting to decode with."""

    cached: float | None  # share of the experts; None: the resident model
    knobs: Knobs
    recall: list[float] | None = None  # limit on the recall of rejected passes, by pass; None: no limit


class Decoder:
    """An engine with one setting; `turn` decodes once and keeps the counters."""

    def __init__(self, setting: Setting, engine: Engine, judge: Judge | None, trace: Trace | None, tokens: int) -> None:
        self.setting = setting
        self.engine = engine
        self.stats: list[Stats] = []
        self._judge = judge
        self._tokens = tokens
        self._forced = None if trace is None else ForcedRouting(engine, trace, setting.recall)

    @property
    def window(self) -> str:
        """The `sync_window`, in words."""
        if self.engine.windows is None:
            return "-" if self.setting.cached in (None, 1) else "1"
        word = self.engine.knobs.shown("sync_window").partition("=")[2]
        return f"{word}, all predicted" if self._forced is not None and self.setting.recall is None else word

    def turn(self) -> float:
        """Decode once; returns tokens per second."""
        if self._forced is not None:
            seconds, stats = self._forced.decode(self._tokens)
            self.stats.append(stats)
            return stats.tokens / seconds
        assert self._judge is not None
        tok_s = self.engine.measure(self._judge).decode_tok_s
        self.stats.append(self.engine.decoded)
        return tok_s


def bench_decode(
    model: Path,
    knobs: Knobs,
    *,
    judge: Judge | None,
    trace: Trace | None,
    window_recall: list[float] | None,
    rounds: int,
    cached: list[float],
    windows: list[int],
    resident: bool,
    mixed: bool,
    tokens: int,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Decode with every cached share and every `sync_window`, in turns with the resident model.

    The serial ceiling is 1 / (io + compute), the overlapped one 1 / max(io, compute). Compute is the resident model's time
    per token. IO is the missing bytes over the bandwidth of plain large reads of the same files (or over `ssd_gbps`), all
    from the same round. Without the resident model there are no ceilings. `mixed`: run everything at two widths and at a
    mixture of them, compared with the resident model at the wider one. `window_recall`: limit on the prediction recall of
    rejected passes under a forced `trace`, for the first pass and for later ones.
    """
    source = Checkpoint.open(model, trust_code=trust_code)
    with contextlib.ExitStack() as stack:
        decoders = [
            Decoder(setting, stack.enter_context(load(model, setting.knobs, trust_code=trust_code)), judge, trace, tokens)
            for widths in (mixtures(source, knobs) if mixed else [{}])
            for setting in settings_of(
                source, _at_widths(knobs, widths), cached, windows, resident, trace is not None, window_recall
            )
        ]
        contenders = [Contender(decoder.window, decoder.turn) for decoder in decoders]
        plain: list[float] = []
        in_turns(contenders, rounds, lambda: plain.append(knobs.ssd_gbps or plain_gbps(source.files, knobs)))
        expert_bytes = source.expert_bytes / source.experts
        base = contenders[0] if resident else None
        rows = [_row(d, c, base, plain, expert_bytes) for d, c in zip(decoders, contenders, strict=True)]
        result = {
            "bench": "decode", "architecture": source.architecture, "layers": len(source.layers),
            "experts": source.layers[0].experts, "top_k": source.top_k, "expert_bits": source.expert_bits,
            "tokens_a_turn": decoders[0].stats[-1].tokens, "rounds": rounds, "mode": decoders[-1].engine.mode,
            "routing": "forced from a trace" if trace else "the model's own, on the evaluation texts",
            "eval_fingerprint": judge.fingerprint if judge else None, "window_recall": window_recall if trace else None,
            "io_gbps": spread(plain), "knobs": knobs.as_dict(), "rows": rows,
        }  # fmt: skip
    print_table(result)
    return result


def mixtures(source: Checkpoint, knobs: Knobs) -> list[dict[str, Any]]:
    """Knobs for two widths alone and for half of every layer's experts at each, which measures the cost of two widths in a
    layer. The widths are `expert_bits` and `cold_bits`, or a store's lowest and highest, or the checkpoint's own and 2."""
    levels = source.levels or (2, source.expert_bits)
    high, low = knobs.expert_bits or levels[-1], knobs.cold_bits or levels[0]
    if low >= high:
        raise HeadraceError(f"--mixed: cold_bits={low} is not below expert_bits={high}; give two widths")
    mixed = {"expert_bits": high, "cold_bits": low, "hot_share": 0.5, "freq_exponent": 0.0}
    return [{"expert_bits": high}, {"expert_bits": low}, mixed]


def settings_of(
    source: Checkpoint, knobs: Knobs, cached: list[float], windows: list[int], resident: bool, forced: bool,
    recall: list[float] | None,
) -> list[Setting]:  # fmt: skip
    """The settings to compare; with `resident` the first one is the base. `forced`: the routing comes from a trace."""
    sizes = weights_of(source, knobs)
    lossy = {name: getattr(knobs, name) for name in (*LOSSY, "prefill_chunk") if name not in CACHE_DEPENDENT}
    settings: list[Setting] = []
    if resident:
        settings.append(Setting(None, Knobs(**lossy)))
    for share in sorted(cached, reverse=True):
        cache_gb = max(sizes.one_token_gb, share * sizes.all_experts_gb)
        if share >= 1:
            useful = {k: v for k, v in knobs.as_dict().items() if k not in NEEDS_MISSES}
            settings.append(Setting(1.0, Knobs.from_mapping(effective({**useful, "cache_gb": sizes.all_experts_gb}))))
            continue
        for window in windows:
            one = dataclasses.replace(knobs, cache_gb=cache_gb, sync_window=window)
            settings.append(Setting(share, one, recall))
            if forced and window != 1 and recall is not None:
                settings.append(Setting(share, one))
    return settings


def _at_widths(knobs: Knobs, widths: dict[str, Any]) -> Knobs:
    return Knobs.from_mapping({**knobs.as_dict(), **({"cold_bits": None} if widths else {}), **widths})


def _row(
    decoder: Decoder, contender: Contender, base: Contender | None, plain: list[float], expert_bytes: float
) -> dict[str, Any]:
    stats, setting = decoder.stats[-1], decoder.setting
    speed = np.array(contender.figures)
    missing_gb = np.array([s.misses * expert_bytes / s.tokens / GB for s in decoder.stats])
    row: dict[str, Any] = {
        "cached": setting.cached, "average_bits": decoder.engine.bits.average_bits, "window": contender.name,
        "cache_gb": decoder.engine.knobs.cache_gb,
        "window_recall": setting.recall, "decode_tok_s": spread(contender.figures),
        "hit_rate": stats.hit_rate,
        "missing_mb_per_token": stats.misses * expert_bytes / stats.tokens / 1e6,
        "read_mb_per_token": stats.bytes_read / stats.tokens / 1e6, "io_ms_per_token": stats.io_ms / stats.tokens,
        "sync_ms_per_token": stats.sync_ms / stats.tokens, "passes_per_token": stats.passes / stats.tokens or None,
        "passes_per_window": stats.passes_per_window, "rejected_layers_per_token": stats.rejected_layers / stats.tokens,
        "window_recall_by_pass": stats.window_recall_by_pass,
    }  # fmt: skip
    compute = None if base is None else 1 / np.array(base.figures)
    row["share_of_resident"] = None if compute is None else spread(speed * compute)
    return row | shares_of_ceilings(speed, missing_gb / np.array(plain), compute)


def shares_of_ceilings(speed: np.ndarray, io: np.ndarray, compute: np.ndarray | None) -> dict[str, Any]:
    """The speeds, tokens/s by round, as shares of the serial and of the overlapped ceiling, with seconds of `io` and of
    `compute` for a token. Null without compute."""
    if compute is None:
        return {"share_of_serial": None, "share_of_overlapped": None}
    return {
        "share_of_serial": spread(speed * (io + compute)),
        "share_of_overlapped": spread(speed * np.maximum(io, compute)),
    }
