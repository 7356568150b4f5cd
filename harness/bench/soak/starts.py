"""Starts of a soak test: one study, whose search is started again and again and interrupted by an event each time."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine import Knobs
from engine.system.user_cache import child_environment

from . import faulty

DISK_MB = 64
BLOCKS_KIB = (64, 256, 1024, 4096)
PATIENCE_S = 60  # for the end of a search after a signal or on a full disk
TIMEOUT_S, HANG_S, LIMIT_GB = 6.0, 1.5, 0.6
SIGNALS = {
    "kill -9": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT] * 2,
}


@dataclass
class Soak:
    """The folders, random events and past starts of one soak test."""

    place: Path  # of checkpoint, evaluation texts, cache and disk
    trials: int
    rng: random.Random
    mounted: bool
    ends: list[tuple[str, int, str]] = field(default_factory=list)  # event, exit status, stderr

    @property
    def folder(self) -> Path:
        return self.place / "disk" / "soak"

    @property
    def least(self) -> int:
        """The least number of each fault and each event."""
        return max(1, self.trials // 15)

    def events(self) -> list[str]:
        """The events of all starts, in random order."""
        few = self.trials // 100
        deck = ["kill -9"] * max(3, self.least) + ["full disk"] * self.least
        deck += [name for name in ("SIGTERM", "Ctrl-C", "Ctrl-C twice") for _ in range(few)]
        self.rng.shuffle(deck)
        return deck

    def anchors(self) -> list[dict[str, Any]]:
        """Settings with at least `least` faults of each status, in random order."""
        ways = Counter(faulty.FATES.values())
        ways["oom"] = 1  # burst and kill test different guards
        kinds = {kind: -(-self.least // ways[status]) for kind, status in faulty.FATES.items()}
        found = []
        while any(kinds.values()):
            values = {
                "cache_gb": _rounded(self.rng.uniform(0.006, 0.04)), "evict_half_life": _rounded(self.rng.uniform(1, 256)),
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
        """Write the study and its space into the folder of `command`."""
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
            "engine": {"module": "harness.bench.soak.faulty"},
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
        """The command of every start."""
        overrides = ["--config-dir", str(self.place / "experiments"), "study=soak", f"results_dir={self.folder.parent}"]
        return [sys.executable, "-m", "harness.search", *overrides]

    def runs(self) -> int:
        """The number of runs that have begun."""
        log = self.place / "checkpoint" / "runs.log"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def search(self, event: str | None = None, runs: int = 0) -> None:
        """Start the search, and cause `event` shortly after `runs` runs have begun in all; without one, wait for its end.

        Ctrl-C and SIGTERM wait for a run of this start, because Python's own start does not handle them.
        """
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
                        self._cause(process, event)
                    else:
                        event = None  # the search ended first
            finally:
                process.kill()
                process.wait()
            err.seek(0)
            self.ends.append((event or "end", process.returncode, err.read()))

    def _cause(self, process: subprocess.Popen[bytes], event: str) -> None:
        """Cause one event and wait for the end of the search."""
        if event == "full disk":
            with self._full_disk(process):
                process.wait(PATIENCE_S)
            return
        for number in SIGNALS[event]:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)
        process.wait(PATIENCE_S)

    @contextlib.contextmanager
    def _full_disk(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """No free byte on the disk, or for the process."""
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


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Mount a small tmpfs at `folder`; yields False where the user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _rounded(value: float) -> float:
    """With four significant digits, as in a space."""
    return float(f"{value:.4g}")
