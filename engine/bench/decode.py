"""bench decode: decoding at several cache sizes against the resident model and both ceilings, in one run.

The tokens are the judge's; or, for a model of random weights, whose own routing would collapse, the routing is forced from
a recorded trace. Forced experts do not depend on the hidden state, so that a void pass of `sync_window` would foresee all
of them. What it may believe is therefore limited to the shares that void passes really foresee on kimi_mini, the first pass
and the later ones apart; the unlimited figure is measured beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from engine.checkpoint.checkpoint import Checkpoint
from engine.effective import effective
from engine.engine import Engine, load
from engine.errors import HeadraceError
from engine.knobs import CACHE_DEPENDENT, GB, LOSSY, NEEDS_MISSES, Knobs
from engine.measure.judge import Judge
from engine.model.switches import switches
from engine.plan.footprint import footprint
from engine.routing.read import Trace
from engine.stats import Stats
from engine.system.page_cache import drop_cache

from . import plain_reads, spread

WARM_UP = 16  # tokens at the least before the clock starts
PLAIN_MIB = 512


@dataclass
class Arm:
    """One engine in the comparison, with what each of its turns gave."""

    cached: float | None  # None: the resident model
    engine: Engine
    foresight: list[float] | None = None  # what void passes may believe, by pass; None: all
    tok_s: list[float] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)
    forced: Forced | None = None

    @property
    def window(self) -> str:
        """Its `sync_window`, in words."""
        if self.engine.windows is None:
            return "-" if self.cached in (None, 1) else "1"
        word = self.engine.knobs.shown("sync_window").partition("=")[2]
        return f"{word}, all foreseen" if self.forced is not None and self.foresight is None else word


def bench_decode(
    model: Path,
    knobs: Knobs,
    *,
    judge: Judge | None,
    trace: Trace | None,
    foresight: list[float] | None,
    rounds: int,
    cached: list[float],
    windows: list[int],
    resident: bool,
    mixed: bool,
    tokens: int,
) -> dict[str, Any]:
    """Decode with every cached share and every `sync_window`, in turns with the resident model.

    Serial ceiling: 1 / (io + compute), overlapped 1 / max(io, compute). Compute is the resident model's time a token, io
    the bytes that were missing over the bandwidth of plain large reads of the same files (or the one `ssd_gbps` holds);
    all of the same round. Without the resident model there are no ceilings. `mixed`: all of it at two widths and at a
    mixture of them, in the same turns; the resident model at the wider one is what all are compared with.
    """
    source = Checkpoint.open(model)
    with contextlib.ExitStack() as stack:
        arms = [
            Arm(share, stack.enter_context(load(model, k)), believed)
            for widths in (mixtures(source, knobs) if mixed else [{}])
            for share, k, believed in _settings(
                source, _at_widths(knobs, widths), cached, windows, resident, trace, foresight
            )
        ]
        if trace is not None:
            for arm in arms:
                arm.forced = Forced(arm.engine, trace, arm.foresight)
        plain: list[float] = []
        for number in range(rounds):
            plain.append(knobs.ssd_gbps or _plain_gbps(source, knobs))
            for arm in arms if number % 2 == 0 else reversed(arms):
                _turn(arm, judge, tokens)
        expert_bytes = source.expert_bytes / sum(layer.experts for layer in source.layers)
        base = arms[0] if resident else None
        rows = [_row(arm, base, plain, expert_bytes) for arm in arms]
        result = {
            "bench": "decode", "architecture": source.architecture, "layers": len(source.layers),
            "experts": source.layers[0].experts, "top_k": source.top_k, "expert_bits": source.expert_bits,
            "tokens_a_turn": arms[0].stats[-1].tokens, "rounds": rounds, "mode": arms[-1].engine.mode,
            "routing": "forced from a trace" if trace else "the model's own, on the judge's tokens",
            "judge": judge.fingerprint if judge else None, "foresight": foresight if trace else None,
            "io_gbps": spread(plain), "knobs": knobs.as_dict(), "rows": rows,
        }  # fmt: skip
    _print(result)
    return result


def mixtures(source: Checkpoint, knobs: Knobs) -> list[dict[str, Any]]:
    """Two widths by themselves, and half of every layer's experts at each: what a layer of two widths costs. They are
    `expert_bits` and `cold_bits`, or a store's ends, or the checkpoint's own and 2."""
    levels = source.levels or (2, source.expert_bits)
    high, low = knobs.expert_bits or levels[-1], knobs.cold_bits or levels[0]
    if low >= high:
        raise HeadraceError(f"--mixed: cold_bits={low} is not below expert_bits={high}; give two widths")
    mixed = {"expert_bits": high, "cold_bits": low, "hot_share": 0.5, "freq_exponent": 0.0}
    return [{"expert_bits": high}, {"expert_bits": low}, mixed]


def _settings(
    source: Checkpoint, knobs: Knobs, cached: list[float], windows: list[int], resident: bool, trace: Trace | None,
    foresight: list[float] | None,
) -> list[tuple[float | None, Knobs, list[float] | None]]:  # fmt: skip
    """Cached share, knobs and believed foresight of every arm; the first is what the others are compared with."""
    sizes = footprint(source, knobs)
    lossy = {name: getattr(knobs, name) for name in (*LOSSY, "prefill_chunk") if name not in CACHE_DEPENDENT}
    settings: list[tuple[float | None, Knobs, list[float] | None]] = []
    if resident:
        settings.append((None, Knobs(**lossy), None))
    for share in sorted(cached, reverse=True):
        cache_gb = max(sizes.one_token_gb, share * sizes.all_experts_gb)
        if share >= 1:
            useful = {k: v for k, v in knobs.as_dict().items() if k not in NEEDS_MISSES}
            settings.append((1.0, Knobs.from_mapping(effective({**useful, "cache_gb": sizes.all_experts_gb})), None))
            continue
        for window in windows:
            one = dataclasses.replace(knobs, cache_gb=cache_gb, sync_window=window)
            settings.append((share, one, foresight))
            if trace is not None and window != 1 and foresight is not None:
                settings.append((share, one, None))
    return settings


def _at_widths(knobs: Knobs, widths: dict[str, Any]) -> Knobs:
    return Knobs.from_mapping({**knobs.as_dict(), **({"cold_bits": None} if widths else {}), **widths})


def _turn(arm: Arm, judge: Judge | None, tokens: int) -> None:
    if arm.forced is not None:
        seconds, stats = arm.forced.decode(tokens)
        arm.tok_s.append(stats.tokens / seconds)
        arm.stats.append(stats)
    else:
        assert judge is not None
        arm.tok_s.append(arm.engine.measure(judge).decode_tok_s)
        arm.stats.append(arm.engine.decoded)


def _row(arm: Arm, base: Arm | None, plain: list[float], expert_bytes: float) -> dict[str, Any]:
    stats = arm.stats[-1]
    io = np.array([s.misses * expert_bytes / s.tokens / GB for s in arm.stats]) / np.array(plain)
    speed = np.array(arm.tok_s)
    row: dict[str, Any] = {
        "cached": arm.cached, "average_bits": arm.engine.bits.average_bits, "window": arm.window,
        "cache_gb": arm.engine.knobs.cache_gb,
        "foresight": arm.foresight, "decode_tok_s": spread(arm.tok_s),
        "hit_rate": stats.hit_rate,
        "missing_mb_per_token": stats.misses * expert_bytes / stats.tokens / 1e6,
        "read_mb_per_token": stats.bytes_read / stats.tokens / 1e6, "io_ms_per_token": stats.io_ms / stats.tokens,
        "sync_ms_per_token": stats.sync_ms / stats.tokens, "passes_per_token": stats.passes / stats.tokens or None,
        "passes_per_window": stats.passes_per_window, "rejected_layers_per_token": stats.rejected_layers / stats.tokens,
        "window_recall_by_pass": stats.window_recall_by_pass,
    }  # fmt: skip
    row |= {"share_of_resident": None, "share_of_serial": None, "share_of_overlapped": None}
    if base is not None:
        compute = 1 / np.array(base.tok_s)
        row["share_of_resident"] = spread(speed * compute)
        row["share_of_serial"] = spread(speed * (io + compute))
        row["share_of_overlapped"] = spread(speed * np.maximum(io, compute))
    return row


def _plain_gbps(source: Checkpoint, knobs: Knobs) -> float:
    if knobs.io_mode == "direct":
        drop_cache(source.files)
    begin = time.perf_counter()
    return plain_reads(source.files, knobs, PLAIN_MIB << 20) / (time.perf_counter() - begin) / GB


class Forced:
    """An engine whose routing comes from a trace; `decode` goes once through the trace's tokens.

    Ranks that the trace lacks are the last ranks of the layer half the model away, for the same token.
    """

    def __init__(self, engine: Engine, trace: Trace, foresight: list[float] | None) -> None:
        layers, top_k = len(engine.checkpoint.layers), engine.checkpoint.top_k
        experts = min(layer.experts for layer in engine.checkpoint.layers)
        recorded = trace.experts[trace.prefilled :] if (trace.experts < 0).any() else trace.experts
        if recorded.shape[1] < layers or recorded.max() >= experts or recorded.shape[2] < top_k / 2:
            raise HeadraceError(
                f"trace {trace.path} ({trace.shape}) does not fit {engine.checkpoint.name} ({layers} layers of "
                f"{experts} experts, top-{top_k}); give one with as many layers, no more experts and at least half of top-k"
            )
        self._engine = engine
        self._ids = _completed(recorded[:, :layers], top_k)
        self._token = 0
        self._on_device: list[mx.array] = []
        self._foresight = foresight
        if engine.windows is not None and foresight is not None:
            engine.windows.prediction = self._believed  # type: ignore[method-assign]
        paths = [path for path, _ in switches(engine.model, engine.checkpoint)]
        modules = dict(engine.model.named_modules())
        forced = [(path, _ForcedSwitch(modules[path], number, self)) for number, path in enumerate(paths)]
        engine.model.update_modules(tree_unflatten(forced))

    def choice(self, layer: int) -> mx.array:
        return self._on_device[layer]

    def decode(self, tokens: int) -> tuple[float, Stats]:
        """Warm up, then decode `tokens` tokens of the trace; seconds and what was counted meanwhile."""
        engine, most = self._engine, len(self._ids) - WARM_UP
        cache = make_prompt_cache(engine.model)
        random = np.random.default_rng(0).integers(0, int(engine.checkpoint.text_config["vocab_size"]), len(self._ids))
        begin = 0.0
        for self._token in range(WARM_UP + min(tokens, most)):
            if self._token == WARM_UP:
                engine.stats.reset()
                begin = time.perf_counter()
            self._on_device = [mx.array(ids) for ids in self._ids[self._token]]
            engine.forward.logits([int(random[self._token])], cache)
        return time.perf_counter() - begin, dataclasses.replace(engine.stats)

    def _believed(self, number: int, ids: np.ndarray, rejected: int) -> np.ndarray:
        """Each expert stays with the probability that this void pass foresees it; in the place of the others stands what the
        layer chose for another, random token, as the void passes of a real model show experts that are often used. An
        expert that one pass foresees, so does every later one that foresees more."""
        assert self._foresight is not None
        rng = np.random.default_rng((self._token, number))
        wrong = rng.random(ids.shape) >= self._foresight[min(rejected, len(self._foresight)) - 1]
        shown = np.array(ids)
        for other in rng.permutation(len(self._ids)):
            for rank in np.flatnonzero(wrong):
                stand_in = self._ids[other, number, rank]
                if stand_in not in ids and stand_in not in shown:
                    shown[rank], wrong[rank] = stand_in, False
            if not wrong.any():
                break
        return shown


class _ForcedSwitch(nn.Module):
    """Hands the trace's experts to the switch, as late as the router's own would come."""

    def __init__(self, inner: Any, layer: int, forced: Forced) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_forced", forced)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        return self._inner(x, _instead(indices, self._forced.choice(self._layer)))


@mx.compile
def _instead(indices: mx.array, forced: mx.array) -> mx.array:
    """`forced`, but not known before `indices` are."""
    return mx.where(indices < 1 << 30, mx.broadcast_to(forced, indices.shape), indices).astype(indices.dtype)


def _completed(recorded: np.ndarray, top_k: int) -> np.ndarray:
    """uint32 [tokens, layers, top-k]: the trace's first ranks, and where it has too few, another layer's last ones."""
    tokens, layers, ranks = recorded.shape
    if ranks >= top_k:
        return recorded[..., :top_k].astype(np.uint32)
    out = np.concatenate([recorded, np.full((tokens, layers, top_k - ranks), -1)], axis=-1)
    others = np.roll(recorded, layers // 2, axis=1)[..., ::-1]
    for token in range(tokens):
        for layer in range(layers):
            new = [e for e in others[token, layer].tolist() if e not in recorded[token, layer]]
            spare = [e for e in range(top_k * 2) if e not in recorded[token, layer] and e not in new]
            out[token, layer, ranks:] = (new + spare)[: top_k - ranks]
    return out.astype(np.uint32)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    low, middle, high = result["io_gbps"]
    console = Console()
    console.print(f"{result['mode']}; {result['routing']}; plain reads {middle:.2f} GB/s ({low:.2f} .. {high:.2f})")
    console.print("ceilings: serial 1/(io + compute), overlapped 1/max(io, compute)")
    if result["foresight"]:
        shares = ", ".join(f"{share:.2f}" for share in result["foresight"])
        console.print(f"void passes may believe a share of {shares} (first pass, later ones) of what they show")
    table = Table(box=None)
    for name in ("cached", "bits", "window", "tok/s", "of resident", "of serial", "of overlapped", "hit", "passes"):
        table.add_column(name, justify="left" if name == "cached" else "right")
    for row in result["rows"]:
        table.add_row(
            "resident" if row["cached"] is None else f"{row['cached']:.1%}",
            f"{row['average_bits']:.3g}",
            row["window"],
            f"{row['decode_tok_s'][1]:.1f}",
            _show(row["share_of_resident"]),
            _show(row["share_of_serial"]),
            _show(row["share_of_overlapped"]).partition(" ")[0],
            "-" if row["hit_rate"] is None else f"{row['hit_rate']:.3f}",
            "-" if row["passes_per_token"] is None else f"{row['passes_per_token']:.2f}",
        )
    console.print(table)


def _show(figure: tuple[float, float, float] | None) -> str:
    if figure is None:
        return "-"
    low, middle, high = figure
    return f"{middle:.2f} ({low:.2f}..{high:.2f})"
