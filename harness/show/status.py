"""Status page: facts of a study from its state, rows and machine, and their text.

progress, current_run, row_facts, health    one group of facts each, JSON-ready
lines, show                                 the facts as words, with front and time budget as tables
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from harness.analysis.counts import Counts, Progress, count, left_s, progress
from harness.analysis.failures import FAILED, cause, streak
from harness.analysis.runs.hours import hours
from harness.analysis.runs.timeline import order
from harness.decisions.recommend import rules_of
from harness.machine.load import Look, Meters, look
from harness.machine.quiet import most_load, unquiet
from harness.results.columns import NOT_RUN
from harness.results.rows import frame
from harness.schema import GuardsConfig

from .hours import hours_table
from .tables import front_table
from .text import clock

RUNS, GONE, UNKNOWN = "runs", "gone", "unknown"  # outcomes of a search besides the phases in which it has ended
HEADS = {
    "finished": "finished",
    "stopped": "stopped before its budget was spent; the same command resumes it",
    "failed": "ended with an error",
    GONE: "CRASHED",
    UNKNOWN: "not running, as there is no state.json; the same command resumes it",
}
MOST_CAUSES = 5  # causes of failures that are listed
SUSPECT = {"before": "started on a machine that was not quiet", "load": "with foreign load during the run",
           "sleep": "during which the machine slept"}  # fmt: skip
Row = Mapping[str, Any]


def progress_facts(state: Row, rows: Sequence[Row], config: Row, now: float, runs: bool) -> dict[str, Any]:
    """Trials, rounds and time left: from the state, which knows other machines, or the rows, which are written first.

    now: the clock `clocks.awake`, which the state of a search that runs on this machine has its times from.
    """
    budget, share = config.get("budget", {}), config.get("confirm", {}).get("share", 0.0)
    wanted = state.get("trials_wanted", budget.get("trials"))
    here = dataclasses.asdict(progress(rows, rows, wanted or 0, share, state.get("confirm_round")))
    done = max(here["trials_done"], state.get("trials_done", 0))
    hours, started = state.get("hours", budget.get("hours")), state.get("started_s")
    elapsed = left = None
    if runs and started is not None:
        elapsed = max(0.0, now - started)
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


def current_run(state: Row, now: float) -> dict[str, Any]:
    since = state.get("since_s")
    facts = {n: state.get(n) for n in ("phase", "trial", "run", "origin", "pid")}
    return facts | {"for_s": None if since is None else max(0.0, now - since)}


def row_facts(rows: Sequence[Row], ended_s_ago: float | None, first_sequence: int) -> dict[str, Any]:
    """Facts of the rows. ended_s_ago: time since the last command's last run ended, if a clock of this machine tells."""
    ran = [r for r in rows if r["status"] not in NOT_RUN]
    sentinels = sorted((r for r in rows if r["origin"] == "sentinel" and r["started_at"]), key=order)
    failed, last = streak(rows, first_sequence)
    ended_at = _ended_at(rows)
    return {
        "counts": dataclasses.asdict(count(rows)),
        "last_s_ago": None if ended_at is None else ended_s_ago,
        "last_ended_at": None if ended_at is None else ended_at.isoformat(timespec="seconds"),
        "failures": dict(Counter(cause(r) for r in ran if r["status"] in FAILED).most_common()),
        "streak": {"failures": failed, "cause": last or None},
        "suspect": dict(Counter(r["suspect"].partition(":")[0] for r in ran if r["suspect"]).most_common()),
        "sentinels": len(sentinels),
        "sentinel_drift": next((r["drift"] for r in reversed(sentinels) if r["drift"] is not None), None),
        "sentinels_drifted": sum(r["drift_since"] is not None for r in sentinels),
        "saved_s": sum(r["saved_s"] or 0.0 for r in rows),
    }


def _ended_at(rows: Sequence[Row]) -> datetime | None:
    """When the last run ended, by the clock of its machine; None without runs."""
    last = max((r for r in rows if r["started_at"]), key=order, default=None)
    if last is None:
        return None
    at: datetime = last["started_at"]
    return at + timedelta(seconds=(last["wall_s"] or 0.0) + (last["slept_s"] or 0.0))


def health(folder: Path, guards: GuardsConfig, meters: Meters) -> dict[str, Any]:
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
    """A study's facts as pairs (name, text), without unknown ones."""
    p, now, rows, h = facts["progress"], facts["now"], facts["rows"], facts["health"]
    pairs: list[tuple[str, str]] = []
    head = f"runs as process {now['pid']}" if now else HEADS[facts["search"]]
    pairs.append(("search", head + (f": {facts['message']}" if facts["message"] else "")))
    at = Progress(*(p[f.name] for f in dataclasses.fields(Progress)))
    done = str(at) if at.trials_wanted else f"{at.trials_done} trials"
    if p["round"]:
        done += f", round {p['round']}" + (f" of {p['rounds']}" if p["rounds"] else "")
    done += "" if p["elapsed_s"] is None else f"; {clock(p['elapsed_s'])} so far"
    done += "" if p["left_s"] is None else f", about {clock(p['left_s'])} left"
    pairs.append(("progress", done))
    if now:
        activity = now["phase"] or "?"
        if now["trial"] is not None:
            activity += f": trial {now['trial']}" + (f", run {now['run']}" if now["run"] else "")
            activity += f" ({now['origin']})" if now["origin"] else ""
        pairs.append(("now", activity + (f", for {clock(now['for_s'])}" if now["for_s"] is not None else "")))
    age = "" if rows["last_ended_at"] is None else f"; the last run ended {_when(rows)}"
    pairs.append(("rows", (str(Counts(**rows["counts"])) if rows["counts"]["runs"] else "none yet") + age))
    causes = list(rows["failures"].items())
    pairs += [("" if i else "failures", f"{n} {why}") for i, (why, n) in enumerate(causes[:MOST_CAUSES])]
    pairs += [("", f"and {len(causes) - MOST_CAUSES} more causes")] if len(causes) > MOST_CAUSES else []
    if rows["streak"]["failures"] > 1:
        pairs.append(("streak", f"the last {rows['streak']['failures']} runs failed with the same cause"))
    if rows["suspect"]:
        n = sum(rows["suspect"].values())
        why = ", ".join(f"{some} {SUSPECT.get(word, word)}" for word, some in rows["suspect"].items())
        pairs.append(("suspect", f"{n} run{'s' if n != 1 else ''}: {why}"))
    if rows["sentinels"]:
        drift = "" if rows["sentinel_drift"] is None else f", the last at {rows['sentinel_drift']:.2f} of the earlier median"
        pairs.append(("sentinel", f"{rows['sentinels']} runs, {rows['sentinels_drifted']} drifted{drift}"))
    if rows["saved_s"]:
        pairs.append(("saved", f"{clock(rows['saved_s'])} by pruning and reuse"))
    low = f", BELOW guards.min_disk_gb={h['min_disk_gb']:g}" if h["disk_low"] else ""
    pairs.append(("disk", f"{h['free_disk_gb']:.3g} GB free{low}"))
    swap = f", {h['swap_used_gb']:.2g} GB of swap used" if h["swap_used_gb"] else ""
    pressure = f", pressure {h['memory_pressure']}" if h["memory_pressure"] else ""
    pairs.append(("memory", f"{h['available_gb']:.3g} of {h['memory_gb']:.3g} GB available{swap}{pressure}"))
    if h["load"] is not None:
        pairs.append(("load", f"foreign load on {h['load']:.1f} of {h['cores']} cores"))
    heat = [*([h["thermal_state"]] if h["thermal_state"] else [])]
    heat += [f"{h['temperature_c']:.0f} °C"] if h["temperature_c"] is not None else []
    pairs += [("heat", ", ".join(heat))] if heat else []
    pairs += [("power", h["power_source"])] if h["power_source"] else []
    pairs += [("not quiet", h["not_quiet"])] if h["not_quiet"] else []
    if best := [Path(path) for path in facts.get("best", ())]:
        pairs.append(("best", f"{best[0].parent}: {', '.join(path.stem for path in best)}"))
    return pairs + [("problem", text) for text in facts["problems"]]


def _when(rows: Row) -> str:
    if rows["last_s_ago"] is not None:
        return f"{clock(rows['last_s_ago'])} ago"
    return f"at {datetime.fromisoformat(rows['last_ended_at']):%Y-%m-%d %H:%M} UTC by its machine's clock"


def show(console: Console, facts: Row, rows: Sequence[Row]) -> None:
    """Print a study's facts and its front within the width of the console."""
    console.print(facts["study"], style="bold", markup=False, highlight=False)
    console.print(_grid(lines(facts)))
    if facts["front"]:
        df = frame(rows)
        console.print(f"\nfront of {facts['front']}, best first:\n", highlight=False)
        console.print(front_table(df, console.width, **rules_of(Path(facts["folder"]))))
    spent = hours(rows, **facts["clock"])
    if spent.runs or spent.unknown_runs:
        console.print()
        console.print(hours_table(spent))


def _grid(pairs: Sequence[tuple[str, str]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for word, text in pairs:
        grid.add_row(word, text)
    return grid
