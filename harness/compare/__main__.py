"""Compare studies: recommended settings and fronts, with intervals, and what differs between them.

    headrace compare before after
    headrace compare results/demo /mnt/other/demo third --json
    headrace compare before after --fail-on-regression 5%

A study is a folder, or its name under results/. The first one is the base; each of the others is compared with it. Exit
status:

    0   compared; with --fail-on-regression, no regression
    1   with --fail-on-regression: a figure is worse by more than the limit,
        beyond noise; the output names it
    2   a user's mistake, damaged files, or a study that cannot be judged
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from engine.cli.program import guarded, make_parser
from engine.system.strict_json import to_json
from harness.paths import find_study

from .comparison import compare, document
from .regression import share
from .tables import regression_lines, show

LEAST_WIDTH, PIPED_WIDTH = 60, 100


def main(arguments: Sequence[str], program: str = "python -m harness.compare") -> int:
    """Compare as the command line says; returns the exit status."""
    return guarded(lambda: _compare(arguments, program))


def _compare(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="folder of a study, or its name under results/")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--fail-on-regression", type=_limit, metavar="LIMIT",
        help="exit with 1 if a later study is worse than the first by more than LIMIT (5%% or 0.05) beyond noise",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if len(given.studies) < 2:
        parser.error(f"{given.studies[0]} is compared with nothing; name two studies or more, the base first")
    found = compare([find_study(name) for name in given.studies], given.fail_on_regression)
    status = 1 if found.regressions else 0
    if given.json:
        print(to_json({**document(found), "exit_status": status}, indent=2))
        if status:
            print("\n".join(regression_lines(found)), file=sys.stderr)
        return status
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPED_WIDTH)
    show(Console(width=LEAST_WIDTH) if console.width < LEAST_WIDTH else console, found)
    return status


def _limit(text: str) -> float:
    try:
        return share(text)
    except ValueError as e:
        reason = str(e) if "%" in str(e) else f"{text} is not a share; give a limit such as 5% or 0.05"
        raise argparse.ArgumentTypeError(reason) from e


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
