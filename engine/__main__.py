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

from engine.cli.program import make_parser, run_command
from engine.system.meters.translated import refuse_translated

ABOUT = "Stream Mixture-of-Experts models from the SSD.\n\n"


def main(argv: Sequence[str] | None = None, program: str = "python -m engine") -> int:
    """Run one command; returns its exit status. `program` is the command's name in its help."""
    return run_command(lambda: parser(program), argv)


def parser(program: str) -> argparse.ArgumentParser:
    """The parser of the command line. Its commands are imported here, within `run_command`, because MLX may not load."""
    refuse_translated()
    import_module("engine.tokenizer.without_torch")  # before mlx-lm
    made = make_parser(program, ABOUT + (__doc__ or "").partition("\n\n")[2])
    parsers = made.add_subparsers(required=True, metavar="COMMAND")
    import_module("engine.cli.arguments.parser").add_commands(parsers)
    bench = parsers.add_parser("bench", help="Measure reads, decoding, quality or packing.")
    import_module("engine.bench.command").add_benchmarks(bench)
    return made


if __name__ == "__main__":
    sys.exit(main())
