"""Status of studies, from another terminal: progress, front and health. It only reads, and takes no lock.

    python -m harness.status demo
    python -m harness.status results/demo other --json
    python -m harness.status demo --watch 10

A study is a folder, or its name under results/. Exit status, the gravest of all named studies:

    0   the search runs, or it has finished: its budget is spent
    1   it ended with an error, its process is gone, or a file is damaged
    2   a user's mistake: no such study
    3   it does not run and its budget is not spent; the same command resumes it
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from engine import HeadraceError
from engine.cli.program import guarded, make_parser
from engine.setting.study_setting import BEST
from engine.system.strict_json import from_json, to_json
from harness import ResultsError
from harness.analysis.counts import count
from harness.analysis.pareto import front
from harness.analysis.runs.hours import hours
from harness.decisions.recommend import rules_of
from harness.machine.clocks import awake, continuous
from harness.machine.identity import boot_id
from harness.machine.load import Meters
from harness.machine.processes import alive
from harness.paths import find_study
from harness.results.rows import frame, read_rows
from harness.schema import GuardsConfig
from harness.session.log import LOG
from harness.session.state import ENDED, FAILED, FINISHED, STOPPED, read_state
from harness.show.status import GONE, RUNS, UNKNOWN, current_run, health, progress_facts, row_facts, show

EXIT = {RUNS: 0, FINISHED: 0, FAILED: 1, GONE: 1, STOPPED: 3, UNKNOWN: 3}
GRAVITY = (0, 3, 1, 2)
Row = Mapping[str, Any]
T = TypeVar("T")


def status(folder: Path, meters: Meters | None = None) -> tuple[dict[str, Any], Sequence[Row]]:
    """All facts of a study, JSON-ready, and its rows. A damaged file becomes a line of `problems`."""
    problems: list[str] = []
    state = _try(problems, lambda: read_state(folder)) or {}
    rows = _try(problems, lambda: read_rows(folder)) or []
    config = _try(problems, lambda: _config(folder)) or {}
    now = awake()
    fate = _fate(state, rows, config)
    guards = GuardsConfig(**config.get("guards", {}))
    meters = meters or Meters(os.getpid(), *([state["pid"]] if fate == RUNS else []))
    facts = {
        "study": str(config.get("study", {}).get("name", folder.name)),
        "folder": str(folder),
        "search": fate,
        "message": _message(fate, state),
        "progress": progress_facts(state, rows, config, now, fate == RUNS),
        "now": current_run(state, now) if fate == RUNS else None,
        "rows": row_facts(rows, _ended_s_ago(state), int(state.get("first_sequence") or 0)),
        "clock": (clock := {name: state.get(name) for name in ("session", "session_s")}),
        "time": hours(rows, **clock).as_dict(),
        "health": health(folder, guards, meters),
        "front": (_try(problems, lambda: len(front(frame(rows), **rules_of(folder)))) or 0) if rows else 0,
        "best": sorted(str(path) for path in (folder / BEST).glob("*.yaml")),
        "problems": problems,
        "exit_status": 1 if problems else EXIT[fate],
    }
    return facts, rows


def _try(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except HeadraceError as e:
        problems.append(str(e))
        return None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        return dict(from_json(path.read_text())["config"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ResultsError(f"{path} is damaged; restore it, or start another study with study.name=OTHER") from e


def _fate(state: Row, rows: Sequence[Row], config: Row) -> str:
    if not state:
        wanted = config.get("budget", {}).get("trials")
        return FINISHED if wanted and count(rows).trials >= wanted else UNKNOWN
    if state.get("phase") in ENDED:
        return str(state["phase"])
    try:
        here = state["boot_id"] == boot_id() and alive(state["pid"], state["created"])
    except (KeyError, TypeError):
        return UNKNOWN
    return RUNS if here else GONE


def _ended_s_ago(state: Row) -> float | None:
    """Seconds since the last run of the last command ended; None if it ended on another machine or before a restart."""
    ended = state.get("ended_s")
    here = state.get("boot_id") is not None and state["boot_id"] == boot_id()
    return max(0.0, continuous() - ended) if here and isinstance(ended, int | float) else None


def _message(fate: str, state: Row) -> str | None:
    if fate == GONE:
        other = state["boot_id"] != boot_id()
        how = "the machine has rebooted, or it is another one" if other else "killed, or crashed"
        return f"process {state['pid']} is gone ({how}); the same command resumes it; its log: {LOG}"
    return state.get("message")


def main(arguments: list[str], program: str = "python -m harness.status") -> int:
    """The command line; returns the exit status."""
    return guarded(lambda: _run(arguments, program))


def _run(arguments: list[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("study", nargs="+", help="folder of a study, or its name under results/")
    parser.add_argument("--json", action="store_true", help="one JSON document per study, each on a line")
    parser.add_argument("--watch", type=float, metavar="S", help="repeat every S seconds until none of the searches runs")
    given = parser.parse_args(arguments)
    if given.watch is not None and not given.watch > 0:
        parser.error(f"--watch {given.watch:g} is not a time; give seconds above 0")
    console = Console()
    folders = [find_study(name) for name in given.study]
    while True:
        found = [status(folder) for folder in folders]
        if given.watch and console.is_terminal and not given.json:
            console.clear()
        for i, (facts, rows) in enumerate(found):
            if given.json:
                print(to_json(facts), flush=True)
            else:
                console.print(*([""] if i else []), end="")
                show(console, facts, rows)
        if not given.watch or all(facts["search"] != RUNS for facts, _ in found):
            return max((facts["exit_status"] for facts, _ in found), key=GRAVITY.index)
        time.sleep(given.watch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
