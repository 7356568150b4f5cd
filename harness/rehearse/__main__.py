"""Rehearse a model before its download: its full shape with random weights, decoded on this machine.

    headrace rehearse kimi_k2_5
    headrace rehearse kimi_k2_5 --cache-gb 24 48 --windows 1 all --json
    headrace rehearse kimi_k2_5 --clean

All resident weights are there; layers share the experts on the disk, so that --disk-gb suffices. Reads, memory, slots and
computation are real. Routing is forced: made up with the locality of a recorded trace, or from a trace. It says nothing
about quality. Settings that ended before a failure, Ctrl-C or SIGTERM are printed. Exit status: 0, 2 for a mistake (one line
on stderr), 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.cli.arguments.options import add_knobs, knobs_given, number_or
from engine.cli.program import guarded, make_parser
from engine.errors import HeadraceError
from engine.knobs import GB, WORDS
from engine.packing.random_store import usual_folder
from engine.shapes.library import shape
from engine.system.strict_json import to_json

from .settings import NAMES, run, settings
from .store import Written, facts, locality_of, removed, written


def main(arguments: Sequence[str], program: str = "python -m harness.rehearse") -> int:
    """Write a rehearsal if it is not there, run it and print its figures; returns the exit status."""
    return guarded(lambda: _rehearse(_parser(program).parse_args(arguments)))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = make_parser(program, __doc__)
    parser.add_argument("shape", metavar="SHAPE", help="a published model (headrace shapes)")
    text = "folder of the rehearsal (default: in the user's cache folder)"
    parser.add_argument("--folder", type=Path, metavar="DIR", help=text)
    text = "disk space that may be used, in 10^9 bytes (default: %(default)g)"
    parser.add_argument("--disk-gb", type=float, default=40.0, metavar="GB", help=text)
    parser.add_argument("--clean", action="store_true", help="remove what was written, and nothing else")
    parser.add_argument("--write", action="store_true", help="write the rehearsal and run nothing")
    sizes = parser.add_mutually_exclusive_group()
    text = "cache sizes, in 10^9 bytes (default: three that fit into memory)"
    sizes.add_argument("--cache-gb", type=float, nargs="+", metavar="GB", help=text)
    sizes.add_argument("--cached", type=float, nargs="+", metavar="SHARE", help="cache sizes, as shares of the experts")
    kind = number_or(WORDS["sync_window"])
    text = "several values of sync_window: layers, all or auto (default: 1)"
    parser.add_argument("--windows", type=kind, nargs="+", default=[1], metavar="N", help=text)
    routing = parser.add_mutually_exclusive_group()
    routing.add_argument("--trace", type=Path, metavar="FILE", help="force the routing of a recorded trace (Parquet)")
    text = "make up routing with the locality of a trace: kimi_mini, olmoe_1b_7b, qwen3_30b_a3b or a file"
    routing.add_argument("--like", metavar="TRACE", help=text)
    text = "limit on the prediction recall of rejected passes, first pass and later ones (default: that of kimi_mini)"
    parser.add_argument("--window-recall", type=float, nargs="+", metavar="SHARE", help=text)
    parser.add_argument("--tokens", type=int, default=24, metavar="N", help="tokens of a round (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=16, metavar="N", help="tokens before them (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="rounds of each setting (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON document alone")
    add_knobs(parser, NAMES)
    return parser


def _rehearse(args: argparse.Namespace) -> int:
    of = shape(args.shape)
    folder = (args.folder or usual_folder(of.name)).expanduser().absolute()
    if args.clean:
        print(removed(folder))
        return 0
    for name, least in (("tokens", 1), ("rounds", 1), ("warm_up", 1)):
        if getattr(args, name) < least:
            raise HeadraceError(f"--{name.replace('_', '-')} {getattr(args, name)} is below {least}; give more")
    if args.trace is not None and not args.trace.expanduser().is_file():
        raise HeadraceError(f"--trace {args.trace} is not a file; give a trace in Parquet, or --like for made-up routing")
    locality = locality_of(args.like)
    found = written(of, folder, args.disk_gb, locality)
    if args.write:
        print(f"{found.source.name}: {found.gb:.4g} GB in {folder}; remove them with --clean")
        return 0
    _run(args, found, locality if args.like else None)
    return 0


def _run(args: argparse.Namespace, found: Written, other: Any) -> None:
    from engine.model.backend import usable_memory_bytes

    from .forecasts import Forecasts
    from .report import document, print_report

    usable = usable_memory_bytes() / GB
    made = settings(found.source, knobs_given(args), args.cached, args.cache_gb, args.windows, usable)
    options = {
        "trace": None if args.trace is None else str(args.trace.expanduser().absolute()),
        "locality": None if other is None else other.as_dict(), "window_recall": args.window_recall, "rounds": args.rounds,
        "tokens": args.tokens, "warm_up": args.warm_up,
    }  # fmt: skip
    like = other or found.locality
    tell = lambda line: print(f"note: {line}", file=sys.stderr)  # noqa: E731
    forecasts = Forecasts(found.source, made, options, tell)
    routing = f"made up with the locality of {like.source}" if args.trace is None else f"forced from {args.trace.name}"
    answers: list[Any] = []
    with _terminated():
        try:
            for answer in run(str(found.folder), made, options, forecasts, tell):
                answers.append(answer)
        finally:  # the figures so far, if a setting fails or the user stops the command
            if answers:
                result = document(facts(found), routing, answers, len(made) - len(answers))
                if args.json:
                    print(to_json(result, indent=1))
                else:
                    print_report(result)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM end the block as an exit with status 143, so that what it has measured is printed."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
