"""Checks after a soak test: every trial, row, token and process is accounted for."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pyarrow.parquet as pq
from optuna.trial import TrialState

from engine import Knobs
from harness.analysis.counts import count
from harness.decisions.reuse import settings_of
from harness.results.rows import read_rows, read_tokens
from harness.run.runner import MAX_STARTS
from harness.session.state import read_state

from . import faulty
from .starts import Soak

DOCUMENTED = {  # exit statuses; SIGTERM during the report has the system's
    **{"end": {0}, "kill -9": {-signal.SIGKILL}, "full disk": {2}, "SIGTERM": {130, -signal.SIGTERM}},
    **{"Ctrl-C": {130}, "Ctrl-C twice": {130}},
}
STARTS_SPOIL = f"the search ended {MAX_STARTS} times during the run"  # a crash that the engine did not cause


def checks(one: Soak) -> Iterator[tuple[str, str]]:
    """Each check with its violation, or with an empty text."""
    rows = read_rows(one.folder)
    first = {r["trial"]: r for r in rows if not r["run"]}
    storage = f"sqlite:///{one.folder / 'study.db'}"
    stored = optuna.load_study(study_name="soak", storage=storage).get_trials(deepcopy=False)
    accepted = [t for t in stored if "trial" in t.user_attrs]
    numbers = Counter(t.user_attrs["trial"] for t in accepted)
    yield "trial numbers are unique", _some(n for n, count in numbers.items() if count > 1)
    yield "every accepted trial has its row", _some(numbers.keys() - first.keys())
    reference = {t for t, r in first.items() if r["origin"] == "reference"}
    yield "every row has its trial in the storage", _some(first.keys() - numbers.keys() - reference)
    yield (
        "no trial is left running or waiting",
        _some(t.number for t in stored if t.state in (TrialState.RUNNING, TrialState.WAITING)),
    )
    names = str(rows[0]["objectives"]).split(",")
    yield (
        "stored values are those of the rows",
        _some(
            t.user_attrs["trial"]
            for t in accepted
            if (row := first.get(t.user_attrs["trial"])) and row["status"] == "ok" and t.values != [row[n] for n in names]
        ),
    )
    yield (
        "failed runs are stored as infeasible, never as failed trials",
        _some(
            t.user_attrs["trial"]
            for t in accepted
            if t.state != TrialState.COMPLETE
            or (t.constraints["possible"] > 0) == (first[t.user_attrs["trial"]]["status"] in ("ok", "stopped", "dominated"))
        ),
    )
    doubled = Counter(r["row_id"] for r in rows) + Counter((r["trial"], r["run"]) for r in rows)
    yield "no row is doubled", _some(key for key, count in doubled.items() if count > 1)
    runs = {(r["trial"], r["run"]) for r in rows}
    yield "no run is missing before a later one", _some((t, n) for t, n in runs if n and (t, n - 1) not in runs)
    yield "the budget is spent, exactly", "" if (n := count(rows).trials) == one.trials else f"{n} trials were run"
    yield (
        "each run has the status of its fault",
        _some((r["trial"], r["run"], fate(r), r["status"], r["status_reason"]) for r in rows if not as_injected(r)),
    )
    seen = Counter(fate(r) for r in rows)
    lacking = [k for k in faulty.FATES.values() if sum(seen[f] for f, s in faulty.FATES.items() if s == k) < one.least]
    yield f"at least {one.least} of each fault", _some(lacking)
    events = Counter(event for event, _, _ in one.ends)
    yield (
        f"at least {one.least} of kill -9 and full disk",
        _some(e for e in ("kill -9", "full disk") if events[e] < one.least),
    )
    whole = pq.read_table(one.folder / "trials.parquet", columns=["row_id"])["row_id"].to_pylist()
    yield (
        "trials.parquet holds all rows, each once",
        "" if sorted(whole) == sorted(r["row_id"] for r in rows) else (f"{len(whole)} of {len(rows)}"),
    )
    tokens = read_tokens(one.folder).groupby("row_id").size().to_dict()
    timed = {r["row_id"]: r["decode_tokens"] for r in rows if r["status"] in ("ok", "stopped")}
    yield (
        "each run that was timed has its tokens",
        _some(r for r in timed.keys() | tokens.keys() if tokens.get(r) != timed.get(r)),
    )
    files = [one.folder / "tokens.parquet", *(one.folder / "tokens").glob("part-*")]
    owners = {i for p in files for i in pq.read_table(p, columns=["row_id"])["row_id"].to_pylist()}
    yield "no token without its row", _some(owners - {r["row_id"] for r in rows})
    yield "the journal is written, once", _once("round 1", (one.folder / "journal.md").read_text().lower())
    yield "no in-flight record is left", "running.json" if (one.folder / "running.json").exists() else ""
    phase = (read_state(one.folder) or {}).get("phase")
    yield "the phase in state.json is finished", "" if phase == "finished" else str(phase)
    damaged = [p.name for p in one.folder.rglob("damaged*")]
    yield "no file is damaged", _some(damaged)
    yield (
        "exit statuses are as documented",
        _some((event, code, err.strip()[-200:]) for event, code, err in one.ends if code not in DOCUMENTED[event]),
    )
    yield (
        "errors are one line",
        _some((event, err.strip()[-300:]) for event, _, err in one.ends if "Traceback" in err or err.count("\n") > 3),
    )
    yield "no process is left, no zombie", _some(leftovers(one.place))


def fate(row: dict[str, Any]) -> str:
    """The fault of a row's setting, or `none`."""
    return faulty.fault(Knobs.from_mapping(settings_of(row))) or "none"


def as_injected(row: dict[str, Any]) -> bool:
    """Whether a row has the status of its setting's fault, or its run saw the search killed too often."""
    if row["status"] == "infeasible":
        knobs = Knobs.from_mapping(settings_of(row))
        return knobs.cache_gb is not None and knobs.cache_gb < faulty.footprint("", knobs).one_token_gb
    if row["status"] == "crash" and STARTS_SPOIL in row["status_reason"]:
        return True
    fault = fate(row)
    return row["status"] in (("ok", "stopped") if fault == "none" else (faulty.FATES[fault],))


def leftovers(place: Path) -> list[str]:
    """Processes that name the soak's folder, and zombies among this process's children."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status", "ppid"]):
        zombie = process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] == os.getpid()
        if process.pid != os.getpid() and (zombie or any(str(place / "disk") in w for w in process.info["cmdline"] or ())):
            found.append(f"{process.pid} {' '.join(process.info['cmdline'] or ['zombie'])[:80]}")
    return found


def _some(wrong: Any) -> str:
    wrong = list(wrong)
    return "" if not wrong else f"{len(wrong)}: " + ", ".join(map(str, wrong[:3]))


def _once(what: str, text: str) -> str:
    headings = [line for line in text.splitlines() if line.startswith("## ") and what in line]
    return "" if len(headings) == 1 else f"{len(headings)} entries"
