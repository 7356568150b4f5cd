"""Worker: the process in which checks run, one after the other, so that a crash or a hang costs one check.

    python -m harness.doctor.worker FOLDER FIRST

It writes a line of JSON before each check, {"begin": N}, and one with its result after it. Whatever else writes to standard
output goes to standard error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.system.strict_json import to_json

from . import calls, compute, disk, meters
from .check import Check, Place


def checks() -> list[Check]:
    """All checks in their order; a check's number is its place in this list."""
    return [*meters.checks(), *calls.checks(), *disk.checks(), *compute.checks()]


def main(folder: str, first: str) -> int:
    """Run the checks from number `first` on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for number, check in enumerate(checks()):
        if number < int(first):
            continue
        print(to_json({"begin": number}), file=out, flush=True)
        result = check.result(Place(Path(folder)))
        print(to_json(result.as_dict()), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
