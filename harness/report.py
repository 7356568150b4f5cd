"""Report a study: recommended settings with their commands, the front as a table, the plots, and a page with all of it.

    python -m harness.report demo
    python -m harness.report results/demo other
    python -m harness.report demo --share     print Markdown, and draw nothing

A study is a folder, or its name under results/. Exit status: 0, or 2 for a mistake or damaged files (one line on stderr).
"""

from __future__ import annotations

import sys

from engine.cli.program import guarded, make_parser
from harness.paths import find_study
from harness.results.rows import read_rows, read_trials
from harness.show.page.share import markdown
from harness.show.page.summary import Summary
from harness.show.report import report


def main(arguments: list[str], program: str = "python -m harness.report") -> int:
    """Report the given studies; returns the exit status."""
    return guarded(lambda: _report(arguments, program))


def _report(arguments: list[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("study", nargs="+", help="folder of a study, or its name under results/")
    parser.add_argument("--share", action="store_true", help="print Markdown to paste into an issue, and draw nothing")
    given = parser.parse_args(arguments)
    for folder in map(find_study, given.study):
        read_trials(folder)  # checks: damaged files, several sets of evaluation texts
        if given.share:
            print(markdown(Summary(folder, read_rows(folder))))
        else:
            report(folder, read_rows(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
