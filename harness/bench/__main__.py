"""Command line of the benchmarks. Each module has `add(subparsers)`, which sets `run`, a function of the arguments."""

from __future__ import annotations

import argparse
import sys

from engine import HeadraceError

from . import ask, confirm, samplers, shared
from .soak import soak

MODULES = (samplers, ask, shared, soak, confirm)


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark; returns 0, 1 after a failed check, or 2 after a user's error (one line on stderr)."""
    parser = argparse.ArgumentParser("python -m harness.bench", description="Benchmarks of the search.")
    sub = parser.add_subparsers(required=True, metavar="WHAT")
    for module in MODULES:
        module.add(sub)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except HeadraceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
