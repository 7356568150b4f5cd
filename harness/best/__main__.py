"""Print the setting of a study as a setting file: a recommended setting, or any trial.

    python -m harness.best demo
    python -m harness.best results/demo --pick fastest
    python -m harness.best demo --trial 3 --out mine.yaml

A study is a folder, or its name under results/. `python -m engine generate --config mine.yaml --prompt TEXT` uses the file;
measure, quality, chat and serve have the same option. Exit status: 0, or 2 for a mistake or damaged files (one line on
stderr).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.cli.program import guarded, make_parser
from engine.setting.study_setting import PICK
from harness.analysis.pareto import Analysis
from harness.decisions.recommend import rules_of
from harness.paths import find_study
from harness.results.files import write_text
from harness.results.rows import read_trials

from .settings import of_trial, picked


def main(arguments: Sequence[str], program: str = "python -m harness.best") -> int:
    """Print or write one setting; returns the exit status."""
    return guarded(lambda: _best(arguments, program))


def _best(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("study", help="folder of a study, or its name under results/")
    chosen = parser.add_mutually_exclusive_group()
    text = f"a recommended setting, default or reference (default: {PICK})"
    chosen.add_argument("--pick", default=PICK, metavar="NAME", help=text)
    chosen.add_argument("--trial", type=int, metavar="N", help="the setting of this trial")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the setting to this file")
    given = parser.parse_args(arguments)
    folder = find_study(given.study)
    found = Analysis(read_trials(folder), **rules_of(folder))
    setting = picked(folder, found, given.pick) if given.trial is None else of_trial(folder, found, given.trial)
    if given.out is None:
        print(setting.to_yaml(), end="")
    else:
        write_text(given.out.expanduser(), setting.to_yaml())
        print(f"{setting.title}: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
