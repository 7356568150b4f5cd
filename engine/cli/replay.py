"""Replay: the command that repeats a recorded routing trace, for a setting's figures or for a table of policies."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from engine.cli.arguments.options import (
    add_knobs,
    add_model,
    add_setting,
    knobs_given,
    knobs_of,
    model_of,
    positive,
    refuse_ignored,
    setting_of,
)  # fmt: skip
from engine.errors import HeadraceError
from engine.system.strict_json import to_json

HALF_LIVES = [0.0, 4.0, 16.0, 64.0, math.inf]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `replay`."""
    parser.add_argument("trace", type=Path, metavar="TRACE", help="routing trace (Parquet)")
    parser.add_argument("--json", action="store_true", help="print a setting's figures as JSON")
    text = "end in an error unless the figures are the engine's own, to the last unit"
    parser.add_argument("--exact", action="store_true", help=text)
    text = "decoded tokens that the figures cover (default: all in the trace)"
    parser.add_argument("--timed-tokens", type=positive, metavar="N", help=text)
    group = parser.add_argument_group("table of policies (without a model or a knob)")
    text = "slots of a layer (default: an eighth, a quarter and half of the experts)"
    group.add_argument("--slots", type=int, nargs="+", metavar="N", help=text)
    text = "experts of a layer (default: the highest number in the trace, plus 1)"
    group.add_argument("--experts", type=int, metavar="N", help=text)
    text = "of a use count, in tokens (default: 0 4 16 64 inf)"
    group.add_argument("--half-life", type=float, nargs="+", default=HALF_LIVES, metavar="X", help=text)
    add_model(parser)
    add_setting(parser)
    add_knobs(parser)


def replay(args: argparse.Namespace) -> None:
    """Print what a setting misses and reads on a recorded trace, or hit rates.

    With a model or a knob the engine's own slots, prefetch and batches repeat the trace's passes, without reading or
    computing anything. Without one, the trace is replayed through the eviction policy at several half-lives, and through
    Belady's optimum.
    """
    of_setting = args.json or args.exact or args.timed_tokens is not None
    if of_setting or args.model is not None or setting_of(args) is not None or knobs_given(args):
        given = [name for name in ("slots", "experts") if getattr(args, name) is not None]
        given += ["half_life"] if args.half_life != HALF_LIVES else []
        refuse_ignored("replay of a setting", given, "takes slots and half-life from the knobs")
        _setting(args)
    else:
        _policies(args)


def _setting(args: argparse.Namespace) -> None:
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.plan.footprint import chunk_for
    from engine.replay.replay import replay
    from engine.routing.traces.recording import read_recording

    knobs, recording = knobs_of(args), read_recording(args.trace)
    checkpoint = Checkpoint.open(model_of(args))
    chunk = chunk_for(checkpoint, knobs).tokens
    result = replay(recording, checkpoint, knobs, chunk=chunk, timed_tokens=args.timed_tokens)
    if args.exact and not result.exact:
        raise HeadraceError(f"no exact replay: {result.why_not[0]}; leave out --exact for an inexact one")
    figures: dict[str, Any] = result.as_dict()
    if args.json:
        named = {"replay": str(args.trace), "model": str(checkpoint.path), "prefill_chunk_used": chunk, **figures}
        print(to_json({**named, "knobs": knobs.as_dict()}, indent=1))
        return
    why_not = figures.pop("why_not")
    print(f"{recording.source}: {recording.shape}, on {checkpoint.name}")
    for name, value in figures.items():
        print(f"{name:<24}{f'{value:.6g}' if isinstance(value, float) else str(value).lower()}")
    for reason in why_not:
        print(f"not exact: {reason}")


def _policies(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from engine.replay.hit_rates import replay_table
    from engine.routing.read import overlap, read_trace

    trace = read_trace(args.trace)
    experts = args.experts or int(trace.experts.max()) + 1
    rows = replay_table(trace, experts, args.slots or [experts // 8, experts // 4, experts // 2], args.half_life)
    table = Table(title=f"hit rate by slots of a layer with {experts} experts ({trace.shape})", box=None)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.3f}" for v in row.values()))
    Console().print(table)
    print(f"share of the experts that the token before chose too: {overlap(trace):.3f}")
    print(to_json({"replay": str(trace.path), "experts": experts, "overlap": overlap(trace), "rows": rows}))
