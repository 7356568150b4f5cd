"""How a study fares, seen from another terminal: progress, front, health. It only reads, and takes no lock.

    python -m harness.status demo
    python -m harness.status results/demo other --json
    python -m harness.status demo --watch 10

A study is a folder, or its name under results/. Exit status, the gravest if several studies are named:

    0   the search runs, or it finished: its budget is spent
    1   it ended with an error, its process is gone, or a file is damaged
    2   a user's mistake: no such study
    3   it does not run and its budget is not spent; the same command resumes
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from engine import HeadraceError
from engine.cli.program import make_parser
from harness import ResultsError
from harness.analysis.counts import Counts, Progress, count, left_s, progress
from harness.analysis.failures import FAILED, cause, streak
from harness.analysis.pareto import front
from harness.decisions.recommend import rules_of
from harness.machine.identity import boot_id
from harness.machine.load import Look, Meters, look
from harness.machine.processes import alive
from harness.machine.quiet import most_load, unquiet
from harness.results.columns import NOT_RUN
from harness.results.rows import frame, read_rows
from harness.schema import GuardsConfig
from harness.session.log import LOG
from harness.session.state import ENDED, FINISHED, STOPPED, read_state
from harness.session.state import FAILED as ERROR
from harness.show.live import clock
from harness.show.tables import front_table
from harness.study.find import find

RUNS, GONE, UNKNOWN = "runs", "gone", "unknown"  # besides `ENDED`, what becomes of a search
EXIT = {RUNS: 0, FINISHED: 0, ERROR: 1, GONE: 1, STOPPED: 3, UNKNOWN: 3}
GRAVITY = (0, 3, 1, 2)
MOST_CAUSES = 5  # of failures, in the text
SUSPECT = {"before": "begun on a machine that was not quiet", "load": "with others' load during the run"}
Row = Mapping[str, Any]


def status(folder: Path, meters: Meters | None = None) -> tuple[dict[str, Any], list[Row]]:
    """What is known of a study, as JSON would have it, and its rows. A damaged file is a line among `problems`."""
    problems: list[str] = []
    state = _try(problems, lambda: read_state(folder)) or {}
    rows = _try(problems, lambda: read_rows(folder)) or []
    config = _try(problems, lambda: _config(folder)) or {}
    now = time.time()
    fate = _fate(state, rows, config)
    guards = GuardsConfig(**config.get("guards", {}))
    meters = meters or Meters(os.getpid(), *([state["pid"]] if fate == RUNS else []))
    facts = {
        "study": str(config.get("study", {}).get("name", folder.name)),
        "folder": str(folder),
        "search": fate,
        "message": _message(fate, state),
        "progress": _progress(state, rows, config, now, fate == RUNS),
        "now": _now(state, now) if fate == RUNS else None,
        "rows": _rows(rows, now, state.get("started")),
        "health": _health(folder, guards, meters),
        "front": (_try(problems, lambda: len(front(frame(rows), **rules_of(folder)))) or 0) if rows else 0,
        "problems": problems,
        "exit_status": 1 if problems else EXIT[fate],
    }
    return facts, rows


def _try(problems: list[str], read: Any) -> Any:
    try:
        return read()
    except HeadraceError as e:
        problems.append(str(e))
        return None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        return dict(json.loads(path.read_text())["config"])
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


def _message(fate: str, state: Row) -> str | None:
    if fate == GONE:
        other = state["boot_id"] != boot_id()
        how = "the machine was started anew, or it was another one" if other else "killed, or crashed"
        return f"its process {state['pid']} is gone ({how}); the same command goes on. Its last words: {LOG}"
    return state.get("message")


def _progress(state: Row, rows: Sequence[Row], config: Row, now: float, runs: bool) -> dict[str, Any]:
    """From the state, for it knows of other machines; from the rows where they know more, for they are written first."""
    budget, share = config.get("budget", {}), config.get("confirm", {}).get("share", 0.0)
    wanted = state.get("trials_wanted", budget.get("trials"))
    here = dataclasses.asdict(progress(rows, rows, wanted or 0, share, state.get("confirm_round")))
    done = max(here["trials_done"], state.get("trials_done", 0))
    hours, started = state.get("hours", budget.get("hours")), state.get("started")
    elapsed = left = None
    if runs and started:
        elapsed = now - started
        limits = [s for s in [left_s(rows, min(here["runs_left"], state.get("runs_left", here["runs_left"])))] if s]
        limits += [max(0.0, hours * 3600 - elapsed)] if hours else []
        left = min(limits, default=None)
    return {
        **here,
        "trials_done": done,
        "trials_wanted": wanted,
        "round": state.get("round"),
        "rounds": config.get("rounds"),
        "elapsed_s": elapsed,
        "left_s": left,
        "hours": hours,
    }


def _now(state: Row, now: float) -> dict[str, Any]:
    since = state.get("since")
    return {n: state.get(n) for n in ("phase", "trial", "run", "origin", "pid")} | {"for_s": now - since if since else None}


def _rows(rows: Sequence[Row], now: float, started: float | None) -> dict[str, Any]:
    ends = [r["started_at"].timestamp() + (r["wall_s"] or 0.0) for r in rows if r["started_at"]]
    ran = [r for r in rows if r["status"] not in NOT_RUN]
    sentinels = sorted((r for r in rows if r["origin"] == "sentinel" and r["started_at"]), key=lambda r: r["started_at"])
    failed, last = streak(rows, datetime.fromtimestamp(started, UTC) if started else None)
    return {
        "counts": dataclasses.asdict(count(rows)),
        "last_s_ago": now - max(ends) if ends else None,
        "failures": dict(Counter(cause(r) for r in ran if r["status"] in FAILED).most_common()),
        "streak": {"failures": failed, "cause": last or None},
        "suspect": dict(Counter(r["suspect"].partition(":")[0] for r in ran if r["suspect"]).most_common()),
        "sentinels": len(sentinels),
        "sentinel_drift": next((r["drift"] for r in reversed(sentinels) if r["drift"] is not None), None),
        "sentinels_drifted": sum(r["drift_since"] is not None for r in sentinels),
        "saved_s": sum(r["saved_s"] or 0.0 for r in rows),
    }


def _health(folder: Path, guards: GuardsConfig, meters: Meters) -> dict[str, Any]:
    seen: Look = look(meters)
    trouble = unquiet(guards, seen, meters.cores, meters.memory_gb)
    free = meters.free_gb(folder)
    return {
        "free_disk_gb": free,
        "min_disk_gb": guards.min_disk_gb,
        "disk_low": free < guards.min_disk_gb,
        "available_gb": seen.available_gb,
        "memory_gb": meters.memory_gb,
        "swap_used_gb": None if seen.state.swap_used_bytes is None else seen.state.swap_used_bytes / 1e9,
        "memory_pressure": seen.state.memory_pressure,
        "load": seen.load,
        "max_load": most_load(guards, meters.cores),
        "cores": meters.cores,
        "thermal_state": seen.state.thermal_state,
        "temperature_c": seen.state.temperature_c,
        "power_source": seen.state.power_source,
        "not_quiet": trouble[1] if trouble else None,
    }


def lines(facts: Row) -> list[tuple[str, str]]:
    """A study's facts as pairs of a word and what is to be said of it; what is not known is left out."""
    p, now, rows, h = facts["progress"], facts["now"], facts["rows"], facts["health"]
    said: list[tuple[str, str]] = []
    heads = {
        RUNS: f"runs as process {now['pid']}" if now else "",
        FINISHED: "finished",
        STOPPED: "stopped before its budget was spent; the same command goes on",
        ERROR: "ended by an error",
        GONE: "CRASHED",
        UNKNOWN: "none runs, as far as can be seen (no state.json); the same command goes on",
    }
    said.append(("search", heads[facts["search"]] + (f": {facts['message']}" if facts["message"] else "")))
    at = Progress(*(p[f.name] for f in dataclasses.fields(Progress)))
    done = str(at) if at.trials_wanted else f"{at.trials_done} trials"
    if p["round"]:
        done += f", round {p['round']}" + (f" of {p['rounds']}" if p["rounds"] else "")
    done += "" if p["elapsed_s"] is None else f"; {clock(p['elapsed_s'])} so far"
    done += "" if p["left_s"] is None else f", about {clock(p['left_s'])} left"
    said.append(("progress", done))
    if now:
        what = now["phase"] or "?"
        if now["trial"] is not None:
            what += f": trial {now['trial']}" + (f", run {now['run']}" if now["run"] else "")
            what += f" ({now['origin']})" if now["origin"] else ""
        said.append(("now", what + (f", for {clock(now['for_s'])}" if now["for_s"] is not None else "")))
    age = "" if rows["last_s_ago"] is None else f"; the last ended {clock(max(0.0, rows['last_s_ago']))} ago"
    said.append(("rows", (str(Counts(**rows["counts"])) if rows["counts"]["runs"] else "none yet") + age))
    causes = list(rows["failures"].items())
    said += [("" if i else "failures", f"{n} {why}") for i, (why, n) in enumerate(causes[:MOST_CAUSES])]
    said += [("", f"and {len(causes) - MOST_CAUSES} causes more")] if len(causes) > MOST_CAUSES else []
    if rows["streak"]["failures"] > 1:
        said.append(("streak", f"the last {rows['streak']['failures']} runs failed with one cause"))
    if rows["suspect"]:
        n = sum(rows["suspect"].values())
        why = ", ".join(f"{some} {SUSPECT.get(word, word)}" for word, some in rows["suspect"].items())
        said.append(("suspect", f"{n} run{'s' if n != 1 else ''}: {why}"))
    if rows["sentinels"]:
        drift = "" if rows["sentinel_drift"] is None else f", the last at {rows['sentinel_drift']:.2f} of those before"
        said.append(("sentinel", f"{rows['sentinels']} measured, {rows['sentinels_drifted']} drifted{drift}"))
    if rows["saved_s"]:
        said.append(("saved", f"{clock(rows['saved_s'])} by not measuring what is known"))
    low = f", BELOW guards.min_disk_gb={h['min_disk_gb']:g}" if h["disk_low"] else ""
    said.append(("disk", f"{h['free_disk_gb']:.3g} GB free{low}"))
    swap = f", {h['swap_used_gb']:.2g} GB of swap used" if h["swap_used_gb"] else ""
    pressure = f", pressure {h['memory_pressure']}" if h["memory_pressure"] else ""
    said.append(("memory", f"{h['available_gb']:.3g} of {h['memory_gb']:.3g} GB available{swap}{pressure}"))
    if h["load"] is not None:
        said.append(("load", f"others keep {h['load']:.1f} of {h['cores']} cores busy"))
    heat = [*([h["thermal_state"]] if h["thermal_state"] else [])]
    heat += [f"{h['temperature_c']:.0f} °C"] if h["temperature_c"] is not None else []
    said += [("heat", ", ".join(heat))] if heat else []
    said += [("power", h["power_source"])] if h["power_source"] else []
    said += [("not quiet", h["not_quiet"])] if h["not_quiet"] else []
    return said + [("problem", text) for text in facts["problems"]]


def show(console: Console, facts: Row, rows: Sequence[Row]) -> None:
    """Print a study's facts and its front, as wide as the console is."""
    console.print(facts["study"], style="bold", markup=False, highlight=False)
    console.print(_grid(lines(facts)))
    if facts["front"]:
        df = frame(rows)
        console.print(f"\nfront of {facts['front']}, best first:\n", highlight=False)
        console.print(front_table(df, console.width, **rules_of(Path(facts["folder"]))))


def _grid(pairs: Sequence[tuple[str, str]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for word, text in pairs:
        grid.add_row(word, text)
    return grid


def main(arguments: list[str], program: str = "python -m harness.status") -> int:
    """The command line; returns the exit status."""
    parser = make_parser(program, __doc__)
    parser.add_argument("study", nargs="+", help="folder of a study, or its name under results/")
    parser.add_argument("--json", action="store_true", help="one JSON document a study, each on a line")
    parser.add_argument("--watch", type=float, metavar="S", help="again every S seconds, until none of the searches runs")
    given = parser.parse_args(arguments)
    if given.watch is not None and not given.watch > 0:
        parser.error(f"--watch {given.watch:g} is no time to wait; give seconds above 0")
    console = Console()
    try:
        folders = [find(name) for name in given.study]
        while True:
            found = [status(folder) for folder in folders]
            if given.watch and console.is_terminal and not given.json:
                console.clear()
            for i, (facts, rows) in enumerate(found):
                if given.json:
                    print(json.dumps(facts), flush=True)
                else:
                    console.print(*([""] if i else []), end="")
                    show(console, facts, rows)
            if not given.watch or all(facts["search"] != RUNS for facts, _ in found):
                return max((facts["exit_status"] for facts, _ in found), key=GRAVITY.index)
            time.sleep(given.watch)
    except HeadraceError as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
