"""Soak test: a study on an engine that fails in every way, whose search is killed, stopped and starved of disk.

    python -m harness.bench soak --trials 300

Runs are killed, crash, hang, exceed their memory or answer wrongly, as a hash of their settings decides (`faulty`). The
search gets kill -9, SIGTERM, Ctrl-C and a full disk at random moments, and each time the same command starts it again. At
the end every trial must be accounted for (`checks`). The full disk is a small tmpfs where the user may mount one (root on
Linux); elsewhere the system rejects each write of the search (RLIMIT_FSIZE of 0). 300 trials take a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.cli.program import add_command
from engine.system.strict_json import to_json
from harness.results.rows import read_rows

from .checks import checks, fate
from .starts import DISK_MB, Soak, disk


def soak(trials: int, place: Path, seed: int) -> tuple[Soak, list[tuple[str, str]]]:
    """Run a soak test in the empty folder `place`; returns its starts, and each check with its violation."""
    (place / "checkpoint").mkdir(parents=True)
    (place / "judge.txt").write_text("The miller opens the headrace and the wheel begins to turn. " * 20)
    with disk(place / "disk") as mounted:
        one = Soak(place, trials, random.Random(seed), mounted)
        how = f"a tmpfs of {DISK_MB} MB" if mounted else "RLIMIT_FSIZE"
        print(f"{trials} trials in {place}; full disk: {how}", flush=True)
        one.study()
        events, begin = one.events(), time.monotonic()
        moments = sorted(one.rng.randint(0, 7 * trials // 10) for _ in events)
        for event, runs in zip(events, moments, strict=True):
            one.search(event, runs)
            name, code, err = one.ends[-1]
            took = time.monotonic() - begin
            print(f"{took:6.0f} s  {one.runs():4} runs  {name:12} {code:4}  {err.strip()[-150:]}", flush=True)
        one.search()
        found = list(checks(one))
        print(*table(one), sep="\n")
    return one, found


def table(one: Soak) -> Iterator[str]:
    """Lines of two tables: statuses by fault, and exit statuses by event."""
    rows = read_rows(one.folder)
    statuses = sorted({r["status"] for r in rows})
    yield f"\n{'fault':12}" + "".join(f"{s:>11}" for s in statuses)
    for kind, some in itertools.groupby(sorted(rows, key=fate), key=fate):
        counts = Counter(r["status"] for r in some)
        yield f"{kind:12}" + "".join(f"{counts[s] or '-':>11}" for s in statuses)
    yield f"\n{'event':14}times  exit statuses"
    for event, times in Counter(event for event, _, _ in one.ends).items():
        codes = Counter(code for name, code, _ in one.ends if name == event)
        yield f"{event:14}{times:5}  " + ", ".join(f"{code} ({n})" for code, n in codes.items())
    yield ""


def add(sub: Any) -> None:
    parser = add_command(sub, "soak", run, __doc__)
    parser.add_argument("--trials", type=int, default=300, help="settings to try (default: 300)")
    parser.add_argument("--results", metavar="DIR", help="a new folder to work in (default: temporary)")
    parser.add_argument("--seed", type=int, default=0, help="seed of faults and moments (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Print tables and checks; returns 1 if a check fails."""
    with contextlib.ExitStack() as held:
        place = Path(args.results or held.enter_context(tempfile.TemporaryDirectory()) + "/soak").absolute()
        one, found = soak(args.trials, place, args.seed)
    for name, wrong in found:
        print(f"{'FAILED' if wrong else 'ok':7}{name}{': ' + wrong if wrong else ''}")
    print(to_json({"trials": one.trials, "starts": len(one.ends), "failed": sum(bool(w) for _, w in found)}))
    return int(any(wrong for _, wrong in found))
