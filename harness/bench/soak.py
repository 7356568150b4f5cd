"""A night of faults: a study on an engine that fails in every way, whose search is killed, stopped and starved of disk.

    python -m harness.bench soak --trials 300

Children are killed, crash, hang, burst their memory and answer wrongly, as their settings' hashes say (`faulty`); the search
meets kill -9, SIGTERM, Ctrl-C and a full disk at random moments, and is started again with the same command. At the end
every trial must be accounted for. The full disk is a real one, a small tmpfs, where the user may mount one (root on Linux);
else the system refuses each write of the search (its RLIMIT_FSIZE is set to 0). 300 trials take a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
import pyarrow.parquet as pq
import yaml
from optuna.trial import TrialState

from engine import Knobs
from engine.cli.program import add_command
from engine.system.child import child_environment
from harness.analysis.counts import count
from harness.decisions.reuse import settings_of
from harness.results.rows import read_rows, read_tokens
from harness.session.state import read_state

from . import faulty

DISK_MB = 64
BLOCKS_KIB = (64, 256, 1024, 4096)
DOCUMENTED = {  # exit statuses; SIGTERM while the report is drawn has the system's
    **{"end": {0}, "kill -9": {-signal.SIGKILL}, "full disk": {2}, "SIGTERM": {130, -signal.SIGTERM}},
    **{"Ctrl-C": {130}, "Ctrl-C twice": {130}},
}
PATIENCE_S = 60  # for a search that was told to end, or whose disk is full
TIMEOUT_S, HANG_S, LIMIT_GB = 6.0, 1.5, 0.6
STARTS_SPOIL = "the search ended 3 times while it ran"


@dataclass
class Soak:
    """The work of one soak: its folders, its dice, and what happened so far."""

    place: Path  # where checkpoint, judge, cache and disk lie
    trials: int
    rng: random.Random
    mounted: bool
    ends: list[tuple[str, int, str]] = field(default_factory=list)  # event, exit status, stderr

    @property
    def folder(self) -> Path:
        return self.place / "disk" / "soak"

    @property
    def least(self) -> int:
        """Of each fault and each event."""
        return max(1, self.trials // 15)

    def events(self) -> list[str]:
        """What befalls the search, in random order."""
        few = self.trials // 100
        deck = ["kill -9"] * max(3, self.least) + ["full disk"] * self.least
        deck += [name for name in ("SIGTERM", "Ctrl-C", "Ctrl-C twice") for _ in range(few)]
        self.rng.shuffle(deck)
        return deck

    def anchors(self) -> list[dict[str, Any]]:
        """Settings with `least` faults of each kind (of three kinds of crash, together), in random order."""
        ways = Counter(faulty.FATES.values())
        ways["oom"] = 1  # a burst and a kill are two things
        kinds = {kind: -(-self.least // ways[status]) for kind, status in faulty.FATES.items()}
        found = []
        while any(kinds.values()):
            values = {
                "cache_gb": _four(self.rng.uniform(0.006, 0.04)), "evict_half_life": _four(self.rng.uniform(1, 256)),
                "read_block_kib": self.rng.choice(BLOCKS_KIB), "read_threads": self.rng.randint(1, 16),
                "io_mode": self.rng.choice(["buffered", "direct"]),
            }  # fmt: skip
            kind = faulty.fault(Knobs.from_mapping(values))
            if kind is not None and kinds[kind]:
                kinds[kind] -= 1
                found.append(values)
        self.rng.shuffle(found)
        return found

    def study(self) -> None:
        """Write the study, with a space of its own, where `command` finds it."""
        space = {
            "cache_gb": {"type": "float", "low": 0.002, "high": 0.04, "log": True},
            "evict_half_life": {"type": "float", "low": 1, "high": 256, "log": True},
            "read_block_kib": {"type": "ordinal", "values": list(BLOCKS_KIB)},
            "read_threads": {"type": "int", "low": 1, "high": 16},
            "io_mode": {"type": "choice", "values": ["buffered", "direct"]},
        }
        config = {
            "defaults": [{"override /search_space": "soak"}],
            "study": {"name": "soak", "anchors": self.anchors()},
            "engine": {"module": "harness.bench.faulty"},
            "model": {"name": "faulty", "path": str(self.place / "checkpoint")},
            "quality": {"text": str(self.place / "judge.txt")},
            "budget": {"trials": self.trials, "trial_timeout_s": TIMEOUT_S, "hang_s": HANG_S},
            "device": {"memory_gb": LIMIT_GB, "usable_share": 1},
            "sampler": {"name": "tpe"},
            "sentinel": {"every": 16},
            "confirm": {"share": 0.05},
            "guards": {"wait_s": 0, "max_load": 99, "min_disk_gb": 0},
        }
        for path, head, content in (
            ("study/soak.yaml", "# @package _global_\n", config), ("search_space/soak.yaml", "", space),
        ):  # fmt: skip
            file = self.place / "experiments" / path
            file.parent.mkdir(parents=True)
            file.write_text(head + yaml.safe_dump(content, sort_keys=False))

    @property
    def command(self) -> list[str]:
        """The same at each start."""
        given = ["--config-dir", str(self.place / "experiments"), "study=soak", f"results_dir={self.folder.parent}"]
        return [sys.executable, "-m", "harness.search", *given]

    def runs(self) -> int:
        """Runs that began so far."""
        log = self.place / "checkpoint" / "runs.log"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def search(self, event: str | None = None, runs: int = 0) -> None:
        """Start the search; when `runs` began in all, and a moment later, let `event` befall it. Without one it goes to its
        end. Ctrl-C and SIGTERM wait for a run of this start: how Python itself starts is not ours to judge."""
        env = child_environment(XDG_CACHE_HOME=str(self.place / "cache"))
        begun = self.runs()
        runs = max(runs, begun + (event not in ("kill -9", "full disk")))
        with open(self.place / "stderr", "w+") as err:
            process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=err, env=env)
            try:
                if event is None:
                    process.wait()
                else:
                    while self.runs() < runs and process.poll() is None:
                        time.sleep(0.02)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self.rng.uniform(0, 1.0 if runs > begun else 4.0))
                    if process.poll() is None:
                        self.befall(process, event)
                    else:
                        event = None  # it was faster
            finally:
                process.kill()
                process.wait()
            err.seek(0)
            self.ends.append((event or "end", process.returncode, err.read()))

    def befall(self, process: subprocess.Popen[bytes], event: str) -> None:
        """Let one event happen and wait for the search to end."""
        if event == "full disk":
            with self.full(process):
                process.wait(PATIENCE_S)
            return
        signals = {"kill -9": [signal.SIGKILL], "SIGTERM": [signal.SIGTERM], "Ctrl-C": [signal.SIGINT],
                   "Ctrl-C twice": [signal.SIGINT] * 2}  # fmt: skip
        for number in signals[event]:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)
        process.wait(PATIENCE_S)

    @contextlib.contextmanager
    def full(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """A disk on which no byte is left."""
        if not self.mounted:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            yield
            return
        ballast = self.folder.parent / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as f:
            while f.write(bytes(4096)):
                pass
        try:
            yield
        finally:
            ballast.unlink()

    def checks(self) -> Iterator[tuple[str, str]]:
        """What must hold at the end, each with what is wrong about it, or nothing."""
        rows = read_rows(self.folder)
        first = {r["trial"]: r for r in rows if not r["run"]}
        storage = f"sqlite:///{self.folder / 'study.db'}"
        told = optuna.load_study(study_name="soak", storage=storage).get_trials(deepcopy=False)
        accepted = [t for t in told if "trial" in t.user_attrs]
        numbers = Counter(t.user_attrs["trial"] for t in accepted)
        yield "trial numbers are unique", _some(n for n, count in numbers.items() if count > 1)
        yield "every accepted trial has its row", _some(numbers.keys() - first.keys())
        reference = {t for t, r in first.items() if r["origin"] == "reference"}
        yield "every row has its trial in the storage", _some(first.keys() - numbers.keys() - reference)
        yield (
            "no trial is left running or waiting",
            _some(t.number for t in told if t.state in (TrialState.RUNNING, TrialState.WAITING)),
        )
        names = str(rows[0]["objectives"]).split(",")
        yield (
            "told values are the rows'",
            _some(
                t.user_attrs["trial"]
                for t in accepted
                if (row := first.get(t.user_attrs["trial"]))
                and row["status"] == "ok"
                and t.values != [row[n] for n in names]
            ),
        )
        yield (
            "what did not run well is told as infeasible, never as failed",
            _some(
                t.user_attrs["trial"]
                for t in accepted
                if t.state != TrialState.COMPLETE
                or (t.constraints["possible"] > 0)
                == (first[t.user_attrs["trial"]]["status"] in ("ok", "stopped", "dominated"))
            ),
        )
        doubled = Counter(r["row_id"] for r in rows) + Counter((r["trial"], r["run"]) for r in rows)
        yield "no row is doubled", _some(key for key, count in doubled.items() if count > 1)
        runs = {(r["trial"], r["run"]) for r in rows}
        yield "no run is missing before a later one", _some((t, n) for t, n in runs if n and (t, n - 1) not in runs)
        yield "the budget is spent, exactly", "" if (n := count(rows).trials) == self.trials else f"{n} trials were run"
        yield (
            "each run ended as its fault says",
            _some((r["trial"], r["run"], fate(r), r["status"], r["status_reason"]) for r in rows if not as_injected(r)),
        )
        seen = Counter(fate(r) for r in rows)
        lacking = [k for k in faulty.FATES.values() if sum(seen[f] for f, s in faulty.FATES.items() if s == k) < self.least]
        yield f"at least {self.least} of each fault", _some(lacking)
        befell = Counter(event for event, _, _ in self.ends)
        yield (
            f"at least {self.least} of kill -9 and full disk",
            _some(e for e in ("kill -9", "full disk") if befell[e] < self.least),
        )
        whole = pq.read_table(self.folder / "trials.parquet", columns=["row_id"])["row_id"].to_pylist()
        yield (
            "trials.parquet holds all rows, each once",
            "" if sorted(whole) == sorted(r["row_id"] for r in rows) else (f"{len(whole)} of {len(rows)}"),
        )
        tokens = read_tokens(self.folder).groupby("row_id").size().to_dict()
        timed = {r["row_id"]: r["decode_tokens"] for r in rows if r["status"] in ("ok", "stopped")}
        yield (
            "each run that was timed has its tokens",
            _some(r for r in timed.keys() | tokens.keys() if tokens.get(r) != timed.get(r)),
        )
        files = [self.folder / "tokens.parquet", *(self.folder / "tokens").glob("part-*")]
        owners = {i for p in files for i in pq.read_table(p, columns=["row_id"])["row_id"].to_pylist()}
        yield "no token without its row", _some(owners - {r["row_id"] for r in rows})
        yield "the journal is written, once", _once("round 1", (self.folder / "journal.md").read_text().lower())
        yield "nothing is in the crash journal", "running.json" if (self.folder / "running.json").exists() else ""
        phase = (read_state(self.folder) or {}).get("phase")
        yield "state.json says finished", "" if phase == "finished" else str(phase)
        damaged = [p.name for p in self.folder.rglob("damaged*")]
        yield "nothing was found damaged", _some(damaged)
        yield (
            "exit statuses are as documented",
            _some((event, code, err.strip()[-200:]) for event, code, err in self.ends if code not in DOCUMENTED[event]),
        )
        yield (
            "errors are one line",
            _some((event, err.strip()[-300:]) for event, _, err in self.ends if "Traceback" in err or err.count("\n") > 3),
        )
        yield "no process is left, no zombie", _some(leftovers(self.place))


def fate(row: dict[str, Any]) -> str:
    """What the engine did to a row's run."""
    return faulty.fault(Knobs.from_mapping(settings_of(row))) or "none"


def as_injected(row: dict[str, Any]) -> bool:
    """Whether a row's status is what its setting's fault demands; three kills in a row while one run lasted excuse it."""
    if row["status"] == "infeasible":
        knobs = Knobs.from_mapping(settings_of(row))
        return knobs.cache_gb is not None and knobs.cache_gb < faulty.footprint("", knobs).one_token_gb
    if row["status"] == "crash" and STARTS_SPOIL in row["status_reason"]:
        return True
    fault = fate(row)
    return row["status"] in (("ok", "stopped") if fault == "none" else (faulty.FATES[fault],))


def leftovers(place: Path) -> list[str]:
    """Processes that name our folder, and zombies among our children."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status", "ppid"]):
        zombie = process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] == os.getpid()
        if process.pid != os.getpid() and (zombie or any(str(place / "disk") in w for w in process.info["cmdline"] or ())):
            found.append(f"{process.pid} {' '.join(process.info['cmdline'] or ['zombie'])[:80]}")
    return found


def _some(wrong: Any) -> str:
    wrong = list(wrong)
    return "" if not wrong else f"{len(wrong)}: " + ", ".join(map(str, wrong[:3]))


def _four(value: float) -> float:
    """With four digits, as a space has it."""
    return float(f"{value:.4g}")


def _once(what: str, text: str) -> str:
    headings = [line for line in text.splitlines() if line.startswith("## ") and what in line]
    return "" if len(headings) == 1 else f"{len(headings)} entries"


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small disk of its own at `folder`, where the system lets us; whether it does."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def soak(trials: int, place: Path, seed: int) -> tuple[Soak, list[tuple[str, str]]]:
    """Run a soak in the empty folder `place`; what happened, and the checks with what is wrong."""
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
        found = list(one.checks())
        print(*table(one), sep="\n")
    return one, found


def table(one: Soak) -> Iterator[str]:
    """Statuses by fault, and events by exit status."""
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
    parser.add_argument("--results", metavar="DIR", help="where to work, a new folder (default: temporary)")
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Print the table and the checks; 1 if one of them fails."""
    with contextlib.ExitStack() as held:
        place = Path(args.results or held.enter_context(tempfile.TemporaryDirectory()) + "/soak").absolute()
        one, found = soak(args.trials, place, args.seed)
    for name, wrong in found:
        print(f"{'FAILED' if wrong else 'ok':7}{name}{': ' + wrong if wrong else ''}")
    print(json.dumps({"trials": one.trials, "starts": len(one.ends), "failed": sum(bool(w) for _, w in found)}))
    return int(any(wrong for _, wrong in found))
