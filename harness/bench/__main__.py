"""Command line of the search's benchmarks: a sub-command for each module that has `add(subparsers)` and `run(arguments)`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.cli.program import make_parser, run_command

from . import ask, confirm, hours, page, samplers, shared
from .soak import soak

MODULES = (samplers, ask, shared, soak, confirm, page, hours)


def main(argv: Sequence[str] | None = None, program: str = "python -m harness.bench") -> int:
    """Run one benchmark; 0, 1 after a failed check, 2 after a user's error (one line on stderr)."""
    parser = make_parser(program, "Benchmarks of the search.")
    parsers = parser.add_subparsers(required=True, metavar="NAME")
    for module in MODULES:
        module.add(parsers)
    return run_command(lambda: parser, argv)


if __name__ == "__main__":
    sys.exit(main())
