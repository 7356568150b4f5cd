"""The command `bench`: a sub-command for each benchmark, with its own options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cli.arguments.opening import add_trust_code, opened_tokenizer
from engine.cli.arguments.options import (
    add_eval_texts,
    add_knobs,
    add_model,
    knobs_given,
    knobs_of,
    model_of,
    number_or,
    positive,
    refuse_ignored,
)
from engine.cli.program import HelpFormatter, add_command, add_version, run_command
from engine.errors import HeadraceError
from engine.knobs import LOSSY, WORDS, Knobs
from engine.system.strict_json import to_json

from . import opening
from .decoding import restored
from .machine import products
from .quality import identity

ABOUT = "Each benchmark prints its ceiling beside the measurement, and one JSON document as its last line."
READS = ("read_threads", "read_block_kib", "io_mode", "ssd_gbps")  # knobs of reads alone


def main(argv: Sequence[str], program: str) -> int:
    """Run one benchmark; returns its exit status. `program` is the command's name in its help."""
    parser = argparse.ArgumentParser(program)
    add_benchmarks(parser)
    return run_command(lambda: parser, argv)


def add_benchmarks(parser: argparse.ArgumentParser) -> None:
    """Add a sub-command for each benchmark."""
    parser.description, parser.formatter_class = ABOUT, HelpFormatter
    add_version(parser)
    parsers = parser.add_subparsers(required=True, metavar="NAME")
    every = Knobs.names()

    io = add_command(parsers, "io", _io)
    add_model(io, positional=True, text="checkpoint folder, or any large file")
    io.add_argument("--rounds", type=int, metavar="N", help="turns of each contender (default: 24; with --ssd-gbps 5)")
    io.add_argument("--mib", type=int, default=128, metavar="N", help="MiB of a turn; more with many threads (default: 128)")
    io.add_argument("--expert-kib", type=int, metavar="N", help="size of a slice (default: the checkpoint's experts)")
    add_knobs(io, READS)

    decode = add_command(parsers, "decode", _decode)
    add_model(decode, positional=True)
    add_trust_code(decode)
    decode.add_argument("--mixed", action="store_true", help="at two widths, and with half of the experts at each")
    decode.add_argument("--resident", action="store_true", help="compare with the resident model")
    _decoding(decode, [1.0, 0.5, 0.25, 0.125], "with --trace: ")
    add_knobs(decode, [name for name in every if name != "cache_gb"])

    prefill = add_command(parsers, "prefill", _prefill)
    add_model(prefill, positional=True)
    add_trust_code(prefill)
    add_eval_texts(prefill)
    _rounds(prefill, 5)
    text = "lengths of the prompts, in tokens (default: 2048)"
    prefill.add_argument("--prompts", type=positive, nargs="+", default=[2048], metavar="N", help=text)
    text = "prefill chunks to compare, in tokens, or auto (default: 512 auto)"
    kind = number_or(WORDS["prefill_chunk"])
    prefill.add_argument("--chunks", type=kind, nargs="+", default=[512, 0], metavar="N", help=text)
    text = "shares of the experts that are cached (default: 0.25)"
    prefill.add_argument("--cached", type=float, nargs="+", default=[0.25], metavar="SHARE", help=text)
    prefill.add_argument("--resident", action="store_true", help="compare with the resident model")
    text = "force the routing of a recorded trace (Parquet) on random tokens instead of the evaluation texts"
    prefill.add_argument("--trace", type=Path, metavar="FILE", help=text)
    add_knobs(prefill, [name for name in every if name not in ("cache_gb", "prefill_chunk")])

    beside = add_command(parsers, "beside", _beside)
    beside.add_argument("checkout", type=Path, metavar="CHECKOUT", help="folder of another checkout of Headrace")
    add_model(beside, positional=True)
    beside.add_argument("--other-model", type=Path, metavar="MODEL", help="checkpoint for CHECKOUT (default: the same)")
    _decoding(beside, [1.0, 0.25])
    text = "also compare the bookkeeping of a layer with this number of experts missing"
    beside.add_argument("--misses", type=int, nargs="+", default=[], metavar="N", help=text)
    beside.add_argument("--profile", action="store_true", help="also sample where the main thread is, in one more turn")
    add_knobs(beside, [name for name in every if name not in ("cache_gb", "sync_window")])

    restored.add_arguments(add_command(parsers, "restored", restored.run))

    hits = add_command(parsers, "hits", _hits)
    add_model(hits, positional=True)
    _rounds(hits, 20)
    hits.add_argument("--misses", type=int, default=0, metavar="N", help="experts missing of top-k (default: %(default)s)")
    add_knobs(hits, [name for name in every if name != "cache_gb"])

    lossy = add_command(parsers, "lossy", _lossy)
    add_model(lossy, positional=True)
    add_trust_code(lossy)
    add_eval_texts(lossy)
    add_knobs(lossy, [name for name in every if name not in LOSSY])

    bits = add_command(parsers, "bits", _bits)
    add_model(bits, positional=True)
    add_trust_code(bits)
    add_eval_texts(bits)
    bits.add_argument("--rounds", type=int, default=5, metavar="N", help="random plans (default: 5)")
    bits.add_argument(
        "--average-bits", type=float, nargs="+", default=[2.5, 3.0], metavar="X", help="budgets (default: 2.5 3)"
    )
    add_knobs(bits, ("expert_bits", "cold_bits"))

    trace = add_command(parsers, "trace", _trace)
    add_model(trace, positional=True)
    add_trust_code(trace)
    add_eval_texts(trace)
    _rounds(trace, 5)
    add_knobs(trace)

    serve = add_command(parsers, "serve", _serve)
    add_model(serve, positional=True)
    add_trust_code(serve)
    add_eval_texts(serve)
    _rounds(serve, 20)
    serve.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens of an answer (default: %(default)s)")
    serve.add_argument("--parallel", type=int, default=1, metavar="N", help="requests at once (default: %(default)s)")
    text = "then send random requests for this time, and report memory and descriptors (default: %(default)s)"
    serve.add_argument("--minutes", type=float, default=0.0, metavar="N", help=text)
    add_knobs(serve)

    identity.add_arguments(add_command(parsers, "identity", identity.run))
    products.add_arguments(add_command(parsers, "products", products.run))
    opening.add_arguments(add_command(parsers, "open", opening.run))
    add_model(add_command(parsers, "grids", _grids), positional=True)

    pack = add_command(parsers, "pack", _pack)
    add_model(pack, positional=True)
    _rounds(pack, 5)
    pack.add_argument("--mib", type=int, default=128, metavar="N", help="MiB that are packed in a turn (default: 128)")

    memory = add_command(parsers, "memory", _memory)
    add_model(memory, positional=True)
    _rounds(memory, 8)
    memory.add_argument("--settings", type=positive, default=10, metavar="N", help="settings (default: %(default)s)")
    text = "compare the speed under these limits of MLX's cache of freed buffers instead, MB"
    memory.add_argument("--cache-limits", type=float, nargs="+", metavar="MB", help=text)
    add_knobs(memory)

    make = add_command(parsers, "make", _make)
    make.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write")
    text = "python -m engine shapes lists them (default: %(default)s)"
    make.add_argument("--shape", default="qwen3_30b_a3b", metavar="NAME", help=text)


def _decoding(parser: argparse.ArgumentParser, cached: list[float], of_tokens: str = "") -> None:
    """The options of what is decoded, and with how many experts cached."""
    add_eval_texts(parser)
    _rounds(parser, 5)
    text = f"shares of the experts that are cached (default: {' '.join(f'{share:g}' for share in cached)})"
    parser.add_argument("--cached", type=float, nargs="+", default=cached, metavar="SHARE", help=text)
    text = "several values of sync_window: layers, all or auto"
    parser.add_argument("--windows", type=number_or(WORDS["sync_window"]), nargs="+", metavar="N", help=text)
    text = "force the routing of a recorded trace (Parquet) instead of decoding the evaluation texts"
    parser.add_argument("--trace", type=Path, metavar="FILE", help=text)
    text = "with --trace: limit on the prediction recall of rejected passes, first pass and later ones"
    parser.add_argument("--window-recall", type=float, nargs="+", metavar="SHARE", help=text)
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help=f"{of_tokens}tokens of a turn (default: 64)")


def _rounds(parser: argparse.ArgumentParser, default: int) -> None:
    text = "turns of each contender (default: %(default)s)"
    parser.add_argument("--rounds", type=int, default=default, metavar="N", help=text)


def _model(args: argparse.Namespace) -> Path:
    """The checkpoint of a benchmark that encodes texts; a wrong tokenizer ends it here."""
    model = model_of(args)
    opened_tokenizer(args, model)
    return model


def _io(args: argparse.Namespace) -> None:
    """Compare the reader with plain large reads of the same files."""
    from .machine.io import bench_io

    knobs = Knobs(**knobs_given(args), cache_gb=1)
    rounds = args.rounds or (5 if knobs.ssd_gbps else 24)
    _print(bench_io(model_of(args, any_file=True), knobs, rounds=rounds, mib=args.mib, expert_kib=args.expert_kib))


def _decode(args: argparse.Namespace) -> None:
    """Decode at several cache sizes, in turns with the resident model."""
    from engine.measure.judge import Judge
    from engine.routing.read import read_trace

    from .decoding.decode import bench_decode

    given = knobs_given(args)
    windows = _windows(args, given, "bench decode")
    given["cache_gb"] = 1.0
    trace = None if args.trace is None else read_trace(args.trace)
    model = _model(args) if trace is None else model_of(args)
    _print(
        bench_decode(
            model, Knobs(**given), judge=None if trace else Judge.load(args.eval_texts), trace=trace,
            window_recall=args.window_recall, rounds=args.rounds, cached=args.cached, windows=windows,
            resident=args.resident, mixed=args.mixed, tokens=args.tokens, trust_code=args.trust_code,
        )
    )  # fmt: skip


def _prefill(args: argparse.Namespace) -> None:
    """Measure the time to first token by prompt and chunk."""
    from engine.measure.judge import Judge
    from engine.routing.read import read_trace

    from .decoding.prefill import bench_prefill

    trace = None if args.trace is None else read_trace(args.trace)
    _print(
        bench_prefill(
            _model(args) if trace is None else model_of(args), Knobs(**knobs_given(args), cache_gb=1.0),
            judge=None if trace else Judge.load(args.eval_texts), trace=trace, rounds=args.rounds, prompts=args.prompts,
            chunks=args.chunks, cached=args.cached, resident=args.resident, trust_code=args.trust_code,
        )
    )  # fmt: skip


def _windows(args: argparse.Namespace, given: dict[str, Any], command: str) -> list[int]:
    """The values of sync_window. Raises `HeadraceError` for options that do not fit a trace."""
    windows: list[int] = args.windows or [given.pop("sync_window", 1)]
    if args.trace is not None:
        forced = [name for name in ("prefetch",) if name in given]
        refuse_ignored(f"{command} --trace", forced, "forces routing that no router predicts")
        if args.window_recall is None and any(window != 1 for window in windows):
            raise HeadraceError(
                "--trace with windows needs --window-recall: prediction recall of rejected passes, first pass and later "
                "ones; measure it with bench decode --windows all on a trained model (window_recall_by_pass in its JSON)"
            )
    return windows


def _beside(args: argparse.Namespace) -> None:
    """Compare decoding and bookkeeping with another checkout of Headrace."""
    from .beside.beside import Work, bench_beside

    given = knobs_given(args)
    windows = _windows(args, given, "bench beside")
    _print(
        bench_beside(
            args.checkout, model_of(args), Knobs(**given, cache_gb=1.0),
            Work(args.eval_texts, args.trace, args.tokens, args.window_recall), other_model=args.other_model,
            cached=args.cached, windows=windows, misses=args.misses, rounds=args.rounds, profile=args.profile,
        )
    )  # fmt: skip


def _hits(args: argparse.Namespace) -> None:
    """Measure a layer's own time when every expert is cached, or some are not."""
    from .decoding.hits import bench_hits

    _print(bench_hits(model_of(args), knobs_of(args), rounds=args.rounds, misses=args.misses))


def _lossy(args: argparse.Namespace) -> None:
    """Measure the reads that lossy knobs save, and their loss of quality."""
    from engine.measure.judge import Judge

    from .quality.lossy import bench_lossy

    _print(bench_lossy(_model(args), knobs_given(args), Judge.load(args.eval_texts), trust_code=args.trust_code))


def _bits(args: argparse.Namespace) -> None:
    """Compare the quality of bit plans at equal bytes."""
    from engine.measure.judge import Judge

    from .quality.bits import bench_bits

    knobs, judge = Knobs(**{"expert_bits": 4, "cold_bits": 2, **knobs_given(args)}), Judge.load(args.eval_texts)
    options = {"average_bits": args.average_bits, "draws": args.rounds, "trust_code": args.trust_code}
    _print(bench_bits(_model(args), knobs, judge, **options))


def _trace(args: argparse.Namespace) -> None:
    """Measure the cost of a trace: decoding with one against without."""
    from engine.measure.judge import Judge

    from .decoding.trace import bench_trace

    options = {"rounds": args.rounds, "trust_code": args.trust_code}
    _print(bench_trace(_model(args), knobs_of(args), Judge.load(args.eval_texts), **options))


def _serve(args: argparse.Namespace) -> None:
    """Compare the server with generate, and measure a second turn's reads."""
    from engine.measure.judge import Judge

    from .serving.serve import bench_serve

    options = {name: getattr(args, name) for name in ("rounds", "tokens", "parallel", "minutes", "trust_code")}
    _print(bench_serve(_model(args), knobs_of(args), Judge.load(args.eval_texts), **options))


def _grids(args: argparse.Namespace) -> None:
    """Compare the error of packed precisions with MLX's and the best."""
    from .quality.grids import bench_grids

    _print(bench_grids(model_of(args)))


def _pack(args: argparse.Namespace) -> None:
    """Compare packing with copying, and measure the cost of verify_reads."""
    from .packing import bench_pack

    _print(bench_pack(model_of(args), rounds=args.rounds, mib=args.mib))


def _make(args: argparse.Namespace) -> None:
    """Write a checkpoint of random weights with a known model's shape."""
    from engine.shapes.library import shape

    from .shapes import make

    make(shape(args.shape), args.folder)


def _print(result: dict[str, Any]) -> None:
    print(to_json(result))


def _memory(args: argparse.Namespace) -> None:
    """Compare predicted with measured peak memory, each setting in its own process."""
    from .memory import bench_cache_limits, bench_memory

    if args.cache_limits is not None:
        _print(bench_cache_limits(model_of(args), knobs_of(args), args.cache_limits, args.rounds))
        return
    if given := sorted(knobs_given(args)):
        raise HeadraceError(
            f"--{given[0].replace('_', '-')} has no effect without --cache-limits, which takes knobs; leave it out"
        )
    _print(bench_memory(model_of(args), args.settings))
