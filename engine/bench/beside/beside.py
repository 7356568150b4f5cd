"""bench beside: decoding and bookkeeping of this checkout against another checkout, in turns, with the resident model.

Each checkout has a process of its own, which keeps its engine for all rounds of a setting. A third process has the resident
model of this checkout, which gives the ceilings of both. The order of the turns is reversed in every second round.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import DEFAULTS, GB, Knobs
from engine.model.environment.mlx_environment import VARIABLES, variables
from engine.system.shipped import PACKAGES

from ..contender import Contender, in_turns, spread
from ..decoding.decode import Setting, settings_of
from ..decoding.hits import TOKENS, half_cached
from ..machine.plain_reads import plain_gbps
from .checkout import Checkout
from .table import print_bookkeeping, print_setting, print_speeds

WAITS = ("io_ms", "sync_ms", "quantize_ms")


@dataclass(frozen=True)
class Work:
    """What the turns decode: the tokens of evaluation texts, or those of a trace. `recall` limits its predictions."""

    texts: Path
    trace: Path | None
    tokens: int
    recall: list[float] | None = None

    def arguments(self, recall: list[float] | None) -> dict[str, Any]:
        """Arguments of the driver's `open`."""
        if self.trace is None:
            return {"texts": str(self.texts.resolve())}
        return {"trace": str(self.trace.resolve()), "recall": recall}


@dataclass
class Side:
    """One checkout with its checkpoint, and what its turns of one setting measured."""

    name: str
    checkout: Checkout
    model: Path
    turns: list[dict[str, Any]] = field(default_factory=list)

    @functools.cached_property
    def source(self) -> Checkpoint:
        return Checkpoint.open(self.model)

    def open(self, knobs: Knobs, **arguments: Any) -> str:
        """Load an engine in the place of the one before; returns its mode. Only knobs that are set are sent, since another
        revision may not have the others."""
        without = () if self.name == "this" else VARIABLES
        given = {n: value for n, value in knobs.as_dict().items() if value != DEFAULTS[n] and n not in without}
        mode: str = self.checkout.ask("open", model=str(self.model.resolve()), knobs=given, **arguments)["mode"]
        return mode

    def close(self) -> None:
        """Close the engine and free its memory."""
        self.checkout.ask("close")

    def turn(self, tokens: int) -> float:
        """Decode once; returns tokens per second."""
        self.turns.append(self.checkout.ask("turn", tokens=tokens))
        return float(self.turns[-1]["tok_s"])

    def bookkeeping(self) -> float:
        """Microseconds of the bookkeeping per layer and token."""
        self.turns.append(self.checkout.ask("bookkeeping", tokens=TOKENS))
        return float(self.turns[-1]["us_per_layer"])


def bench_beside(
    other: Path, model: Path, knobs: Knobs, work: Work, *, other_model: Path | None, cached: list[float], windows: list[int],
    misses: list[int], rounds: int, profile: bool,
) -> dict[str, Any]:  # fmt: skip
    """Speed of this checkout over that of `other` for every cached share and every `sync_window`, and the ratio of a layer's
    bookkeeping for every number of `misses`.

    The ceilings are those of `bench decode`, with MLX as it is by default. `other_model`: the other checkout decodes this
    checkpoint, whose resident model also gives the ceilings. `profile`: one more turn of each with samples of the main
    thread.
    """
    with _sides(other, model, other_model, variables(knobs.as_dict())) as sides:
        resident, *_ = settings_of(sides[2].source, knobs, [], [], True, False, None)
        if cached:
            sides[2].open(resident.knobs, **work.arguments(None))
        rows = [_decoded(sides, pair, knobs, work, rounds, profile) for pair in _pairs(sides, knobs, cached, windows, work)]
        sides[2].close()
        bookkeeping = [_bookkeeping(sides, knobs, number, rounds) for number in misses]
    result = {
        "bench": "beside", "this": str(PACKAGES), "other": str(other.resolve()), "model": str(model),
        "other_model": str(other_model or model), "architecture": sides[0].source.architecture,
        "layers": len(sides[0].source.layers), "experts": sides[0].source.layers[0].experts,
        "top_k": sides[0].source.top_k, "rounds": rounds, "tokens_a_turn": work.tokens,
        "routing": "forced from a trace" if work.trace else "the model's own, on the evaluation texts",
        "window_recall": work.recall if work.trace else None, "knobs": knobs.as_dict(), "rows": rows,
        "bookkeeping": bookkeeping,
    }  # fmt: skip
    print_speeds(result)
    print_bookkeeping(bookkeeping)
    return result


@contextlib.contextmanager
def _sides(
    other: Path, model: Path, other_model: Path | None, environment: dict[str, str]
) -> Iterator[tuple[Side, Side, Side]]:
    """This checkout, the other one, and the resident model. Knobs that are variables of MLX are this checkout's alone."""
    with Checkout(other, {}) as theirs, Checkout(PACKAGES, environment) as ours, Checkout(PACKAGES, {}) as resident:
        base = other_model or model
        yield Side("this", ours, model), Side("other", theirs, base), Side("resident", resident, base)


def _pairs(
    sides: tuple[Side, Side, Side], knobs: Knobs, cached: list[float], windows: list[int], work: Work
) -> list[tuple[Setting, Setting]]:
    """Each setting for the checkpoints of this and of the other checkout."""
    this, other = (settings_of(side.source, knobs, cached, windows, False, False, work.recall) for side in sides[:2])
    return list(zip(this, other, strict=True))


def _decoded(
    sides: tuple[Side, Side, Side], settings: tuple[Setting, Setting], knobs: Knobs, work: Work, rounds: int, profile: bool
) -> dict[str, Any]:
    """Measure one setting."""
    *streamed, resident = sides
    for side, setting in zip(streamed, settings, strict=True):
        mode = side.open(setting.knobs, **work.arguments(setting.recall))
    for side in sides:
        side.turns = []
    contenders = [Contender(side.name, functools.partial(side.turn, work.tokens)) for side in (resident, *streamed)]
    plain: list[float] = []
    files = streamed[0].source.files
    in_turns(contenders, rounds, lambda: plain.append(knobs.ssd_gbps or plain_gbps(files, knobs)))
    base, *speeds = (np.array(contender.figures) for contender in contenders)
    row: dict[str, Any] = {
        "cached": settings[0].cached, "window": _window(settings[0]), "window_recall": settings[0].recall,
        "mode": mode, "ratio": spread(speeds[0] / speeds[1]), "io_gbps": spread(plain), "resident_tok_s": spread(base),
    }  # fmt: skip
    for side, speed in zip(streamed, speeds, strict=True):
        shares = side.checkout.ask("turn", tokens=work.tokens, samples=True)["samples"] if profile else {}
        row[side.name] = _figures(side, speed, 1 / base, np.array(plain), shares)
    for side in streamed:
        side.close()
    print_setting(row)
    return row


def _figures(
    side: Side, speed: np.ndarray, compute: np.ndarray, plain: np.ndarray, shares: dict[str, float]
) -> dict[str, Any]:
    """Figures of one checkout in one setting: medians, and quartiles where the round matters."""
    expert_bytes = side.source.expert_bytes / side.source.experts
    per_token = {name: float(np.median([turn[name] for turn in side.turns])) for name in side.turns[0] if name != "samples"}
    missing = np.array([turn["misses"] for turn in side.turns]) * expert_bytes / GB
    io, wall = missing / plain, 1e3 / speed
    waits = np.array([[turn[name] for name in WAITS] for turn in side.turns])
    uses = per_token["hits"] + per_token["misses"]
    ms = {"wall": wall, **dict(zip(("io", "sync", "quantize"), waits.T, strict=True)), "rest": wall - waits.sum(axis=1),
          "compute_alone": compute * 1e3, "io_alone": io * 1e3}  # fmt: skip
    return {
        "decode_tok_s": spread(speed), "share_of_resident": spread(speed * compute),
        "share_of_serial": spread(speed * (io + compute)), "share_of_overlapped": spread(speed * np.maximum(io, compute)),
        "hit_rate": per_token["hits"] / uses if uses else None, "missing_mb_per_token": float(np.median(missing)) * 1e3,
        "read_mb_per_token": per_token["bytes_read"] / 1e6, "reads_per_token": per_token["reads"],
        "passes_per_token": per_token["passes"] or None, "cpu_ms_per_token": per_token["cpu_ms"],
        "ms_per_token": {name: float(np.median(figure)) for name, figure in ms.items()},
        "samples_ms": {place: share * float(np.median(wall)) for place, share in shares.items()},
    }  # fmt: skip


def _bookkeeping(sides: tuple[Side, Side, Side], knobs: Knobs, misses: int, rounds: int) -> dict[str, Any]:
    """Measure the bookkeeping of a layer with `misses` of top-k experts missing."""
    for side in sides[:2]:
        side.open(half_cached(side.model, knobs), misses=misses)
        side.turns = []
    contenders = [Contender(side.name, side.bookkeeping) for side in sides[:2]]
    in_turns(contenders, rounds)
    this, other = (np.array(contender.figures) for contender in contenders)
    counted = [side.turns[-1]["misses"] for side in sides[:2]]
    for side in sides[:2]:
        side.close()
    return {"misses": misses, "counted": counted, "this_us": spread(this), "other_us": spread(other),
            "ratio": spread(this / other)}  # fmt: skip


def _window(setting: Setting) -> str:
    """The `sync_window`, in words."""
    return "-" if setting.cached == 1 else setting.knobs.shown("sync_window").partition("=")[2]
