"""Examine this machine: what it is, whether each meter and system call works, and how fast its disk and host are.

    headrace doctor
    headrace doctor --folder /Volumes/models --json > doctor.json

It needs no model and takes less than a minute. It writes a file of at most 2 GB to the folder and removes it again. The
report ends with what the results mean and with a JSON document to paste into an issue; the document names no user, host or
folder. Exit status: 0 if all checks were made, also where some fail, or 2 for a mistake (one line on stderr).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.cli.program import guarded, make_parser

from .check import FAILS, NO_VALUE, WORKS, Result
from .examine import counts, examine, temporary_folder
from .meaning import consequences, document_text, meaning
from .worker import checks

TITLES = {
    "machine": "Machine", "limits": "Limits", "meters": "Meters", "calls": "System calls", "disk": "Disk",
    "compute": "Compute",
}  # fmt: skip


def main(arguments: Sequence[str], program: str = "python -m harness.doctor") -> int:
    """Examine this machine and print the report; returns the exit status."""
    return guarded(lambda: _doctor(arguments, program))


def _doctor(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="folder on the disk to measure (default: the current one)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON document alone")
    given = parser.parse_args(arguments)
    with temporary_folder(given.folder.expanduser()) as folder:
        show = (lambda result: None) if given.json else _Printer()
        results = examine(folder, show)
    if given.json:
        print(document_text(results))
        return 0
    _print_end(results)
    return 0


class _Printer:
    """Prints each result as it comes, with a heading for each group."""

    def __init__(self) -> None:
        self._group = ""

    def __call__(self, result: Result) -> None:
        if result.group != self._group:
            print(f"{self._group and chr(10)}{TITLES[result.group]}")
            self._group = result.group
        mark = {WORKS: " ", NO_VALUE: "-", FAILS: "!"}[result.state]
        said = {WORKS: result.text, NO_VALUE: "no value", FAILS: f"fails: {result.reason}"}[result.state]
        print(f" {mark} {result.name}: {said}", flush=True)


def _print_end(results: Sequence[Result]) -> None:
    missing = consequences(results, checks())
    if missing:
        print("\nWhat does not work, and what follows")
        for result, without in missing:
            print(f" {'!' if result.state == FAILS else '-'} {result.name}. {without}".rstrip())
    print("\nWhat it means")
    for sentence in meaning(results):
        print(f"   {sentence}")
    number = counts(results)
    print(
        f"   Checks: {number.get(WORKS, 0)} worked, {number.get(FAILS, 0)} failed, {number.get(NO_VALUE, 0)} had no value."
    )
    print("\nDocument for a report")
    print(document_text(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
