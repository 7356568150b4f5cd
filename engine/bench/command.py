"""The command `bench`: which benchmark, with which options, and which of them it would ignore."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from engine.cli.options import knobs_given, knobs_of, number_or, refuse_ignored
from engine.errors import HeadraceError, did_you_mean
from engine.knobs import LOSSY, WORDS, Knobs


def add_bench_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("what", choices=("io", "decode", "hits", "lossy", "bits", "trace", "open", "make", "grids", "pack"))
    sub.add_argument("path", type=Path, nargs="?", help="checkpoint folder (io: or any large file)")
    sub.add_argument("--rounds", type=int, help="turns of each arm; bits: random plans (default: 5; io 24)")
    sub.add_argument("--average-bits", type=float, nargs="+", metavar="X", help="bits: budgets (default: 2.5 3)")
    sub.add_argument("--mib", type=int, default=128, help="io: read this much a turn; more with many threads")
    sub.add_argument("--expert-kib", type=int, help="io: slices of this size instead of the checkpoint's experts")
    sub.add_argument("--cached", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.125], help="decode: shares cached")
    sub.add_argument("--mixed", action="store_true", help="decode: at two widths, and half of the experts at each")
    sub.add_argument("--resident", action="store_true", help="decode: beside the resident model")
    sub.add_argument(
        "--windows",
        type=number_or(WORDS["sync_window"]),
        nargs="+",
        metavar="N",
        help="decode: several sync_window",
    )
    sub.add_argument("--trace", type=Path, help="decode: force the routing from a recorded trace (Parquet)")
    sub.add_argument(
        "--foresight",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="decode --trace: what void passes may believe, by pass",
    )
    sub.add_argument("--tokens", type=int, default=64, help="decode --trace: tokens a turn")
    sub.add_argument("--shape", default="qwen3_30b_a3b", help="make: whose shape")


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))


def bench(args: argparse.Namespace) -> None:
    """Measure: io (the reader), decode, open, lossy, bits (plans), trace (what one costs); or make a checkpoint for it."""
    if args.what == "make":
        from .shapes import SHAPES, make

        if args.path is None:
            raise HeadraceError(f"bench make: name the folder to write --shape {args.shape} to")
        if args.shape not in SHAPES:
            raise HeadraceError(f"--shape {args.shape} is unknown; {did_you_mean(args.shape, list(SHAPES))}")
        make(args.shape, args.path)
    elif args.what == "hits":
        from .decoding.hits import bench_hits

        print_json(bench_hits(args.path or args.model, knobs_of(args), rounds=args.rounds or 20))
    elif args.what == "grids":
        from .quality.grids import bench_grids

        refuse_ignored("bench grids", sorted(knobs_given(args)), "measures weights alone")
        print_json(bench_grids(args.path or args.model))
    elif args.what == "pack":
        from .packing import bench_pack

        refuse_ignored("bench pack", sorted(knobs_given(args)), "measures packing alone")
        print_json(bench_pack(args.path or args.model, rounds=args.rounds or 5, mib=args.mib))
    elif args.what == "open":
        from .opening import bench_open

        print_json(bench_open(args.path or args.model))
    elif args.what == "io":
        from .io import bench_io

        of_reads = ("read_threads", "read_block_kib", "io_mode", "ssd_gbps")
        given = knobs_given(args)
        refuse_ignored("bench io", sorted(given.keys() - set(of_reads)), "measures reads alone")
        knobs = Knobs(**given, cache_gb=1)
        rounds = args.rounds or (5 if knobs.ssd_gbps else 24)
        print_json(bench_io(args.path or args.model, knobs, rounds=rounds, mib=args.mib, expert_kib=args.expert_kib))
    elif args.what == "lossy":
        from engine.measure.judge import Judge

        from .quality.lossy import bench_lossy

        given = knobs_given(args)
        refuse_ignored("bench lossy", [name for name in LOSSY if name in given], "goes through the lossy knobs itself")
        print_json(bench_lossy(args.path or args.model, given, Judge.load(args.judge)))
    elif args.what == "bits":
        from engine.measure.judge import Judge

        from .quality.bits import bench_bits

        given = {"expert_bits": 4, "cold_bits": 2, **knobs_given(args)}
        refuse_ignored("bench bits", sorted(given.keys() - {"expert_bits", "cold_bits"}), "tries them all")
        judge = Judge.load(args.judge)
        budgets, draws = args.average_bits or [2.5, 3.0], args.rounds or 5
        print_json(bench_bits(args.path or args.model, Knobs(**given), judge, average_bits=budgets, draws=draws))
    elif args.what == "trace":
        from engine.measure.judge import Judge

        from .decoding.trace import bench_trace

        judge = Judge.load(args.judge)
        print_json(bench_trace(args.path or args.model, knobs_of(args), judge, rounds=args.rounds or 5))
    else:
        print_json(_bench_decode(args))


def _bench_decode(args: argparse.Namespace) -> dict[str, Any]:
    from engine.measure.judge import Judge
    from engine.routing.read import read_trace

    from .decoding.decode import bench_decode

    given = knobs_given(args)
    refuse_ignored("bench decode", ["cache_gb"] * ("cache_gb" in given), "takes shares with --cached")
    if args.trace is not None:
        refuse_ignored("bench decode --trace", ["prefetch"] * ("prefetch" in given), "has routing that no router foretells")
    given["cache_gb"] = 1.0
    windows = args.windows or [given.pop("sync_window", 1)]
    trace = None if args.trace is None else read_trace(args.trace)
    if trace is not None and args.foresight is None and any(w != 1 for w in windows):
        raise HeadraceError(
            "--trace with windows needs --foresight: the shares of the experts behind a miss that void passes show, first "
            "pass and later ones; measure them with bench decode --windows all on a trained model (foreseen, in its JSON)"
        )
    return bench_decode(
        args.path or args.model, Knobs(**given), judge=None if trace else Judge.load(args.judge), trace=trace,
        window_recall=args.foresight, rounds=args.rounds or 5, cached=args.cached, windows=windows, resident=args.resident,
        mixed=args.mixed,
        tokens=args.tokens,
    )  # fmt: skip
