"""Hours: runs the study of `make search`, or takes one that has run, and prints where its time went.

    python -m harness.bench hours
    python -m harness.bench hours --study demo

The study gets a folder of its own that is removed afterwards, unless `--results` names one. Words after the options are
overrides of the study. The figures mean little unless the machine is quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.cli.program import add_command
from engine.errors import HeadraceError
from engine.system.strict_json import to_json
from engine.system.user_cache import child_environment
from harness.paths import find_study
from harness.results.rows import read_rows
from harness.show.hours import hours_table
from harness.show.page.summary import Summary


def add(parsers: Any) -> None:
    parser = add_command(parsers, "hours", run, __doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the study that is run")
    parser.add_argument("--study", help="print that of a study that has run, a folder or its name under results/")
    parser.add_argument("--results", type=Path, metavar="DIR", help="keep the study in this folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the time budget; returns the exit status."""
    if arguments.study is not None:
        if arguments.overrides or arguments.results:
            raise HeadraceError(f"--study {arguments.study} is not run; leave out --results and overrides")
        return shown(find_study(arguments.study), None, as_json=arguments.json)
    with contextlib.ExitStack() as held:
        results = arguments.results or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="headrace-hours-")))
        begin = time.monotonic()
        searched(results, arguments.overrides)
        command_s = time.monotonic() - begin
        made = list(results.glob("*/manifest.json"))
        if len(made) != 1:
            raise HeadraceError(f"{results} holds {len(made)} studies; give --results a folder without studies")
        return shown(made[0].parent, command_s, as_json=arguments.json)


def searched(results: Path, overrides: list[str]) -> None:
    """Run the search in a process of its own, with its lines on stderr. Raises `HeadraceError` if it fails."""
    command = [sys.executable, "-m", "harness.search", *overrides, f"results_dir={results.absolute()}"]
    status = subprocess.run(command, stdout=sys.stderr, env=child_environment(), check=False).returncode
    if status:
        raise HeadraceError(f"the search ended with exit status {status}; its reason is above")


def shown(folder: Path, command_s: float | None, *, as_json: bool) -> int:
    """Print the time budget of a study's folder; `command_s`: seconds of the whole command that made it."""
    found = Summary(folder, read_rows(folder)).hours
    if as_json:
        print(to_json({"headrace_hours": 1, "command_s": command_s, **found.as_dict()}))
        return 0
    console = Console(soft_wrap=True)
    if command_s is not None:
        outside = command_s - found.clock_s
        console.print(
            f"the command took {command_s:.1f} s, {outside:.1f} s of them before and after the search (composing the study, "
            "the report)",
            highlight=False,
        )
    console.print(hours_table(found))
    return 0 if found.agrees else 1
