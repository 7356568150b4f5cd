"""Command line of the engine.

    python -m engine generate --prompt "The query planner" --cache-gb 0.02
    python -m engine chat --cache-gb 0.02
    python -m engine measure --cache-gb 0.02 --eval-texts my_texts.yaml
    python -m engine quality --model ~/models/Kimi-K2.5 --expert-bits 2
    python -m engine inspect --model ~/models/Kimi-K2.5
    python -m engine serve --cache-gb 0.02

Every knob is an option. The default model is the shipped kimi_mini.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from engine.cli.program import guarded

ABOUT = "Stream Mixture-of-Experts models from the SSD.\n\n"


def main(argv: Sequence[str] | None = None, program: str = "python -m engine") -> int:
    """Run one command; returns its exit status. `program` is the command's name in its help."""

    def run() -> int | None:
        args = parser(program).parse_args(argv)
        return args.run(args)  # type: ignore[no-any-return]

    return guarded(run)


def parser(program: str) -> argparse.ArgumentParser:
    """The parser of the command line. It is imported here, within `guarded`, because MLX may be missing on this machine."""
    made: argparse.ArgumentParser = import_module("engine.cli.parser").parser_of(
        program, ABOUT + (__doc__ or "").partition("\n\n")[2]
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
