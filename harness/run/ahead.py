"""Ahead: while a run is scored, what later runs would wait for is computed in a process of its own.

A study's settings may need the routing profile of the model (`cold_bits`, `pinned_share`) and the routing of the timed
tokens (`engine.plan.ceiling`, with `ssd_gbps`). Both are passes of one core over some texts, and scoring leaves a core idle.
The result is a file in the user's cache folder. A job that fails, or for which memory is missing, is left to its first use,
which reports what is wrong.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import Knobs, Protocol
from engine.checkpoint.known import opened
from engine.errors import HeadraceError
from engine.system.user_cache import start_apart
from harness.machine.identity import available_gb
from harness.machine.processes import end_group
from harness.study.engines import is_own
from harness.study.study import Study

PAUSE_S = 0.05
MEMORY_SHARE = 0.5  # of the available memory, which a job may take


@dataclass(frozen=True)
class Apart:
    """A job of `engine.cli.offline`: its command, its request, the file that it makes, and its predicted peak in GB."""

    command: tuple[str, ...]
    given: str
    file: Path
    peak_gb: float


class Ahead:
    """The jobs of one study, one after the other. `available`: the machine's available memory, GB."""

    def __init__(self, study: Study, available: Callable[[], float] = available_gb) -> None:
        self._jobs = jobs(study)
        self._available = available
        self._child: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start the next job whose file is missing. Call this only while no run is timed."""
        if self._child is not None:
            return
        with contextlib.suppress(HeadraceError, OSError):
            for job in self._jobs:
                if not job.file.exists() and job.peak_gb <= MEMORY_SHARE * self._available():
                    self._child = start_apart(*job.command, given=job.given)
                    return

    def settle(self, interrupted: Callable[[], bool]) -> None:
        """Wait until the job under way has ended, which has to be before a run is timed."""
        while self._child is not None and self._child.poll() is None and not interrupted():
            time.sleep(PAUSE_S)
        self.close()

    def close(self) -> None:
        """End the job under way."""
        if self._child is not None:
            end_group(self._child.pid)
            self._child.wait()
            self._child = None


def jobs(study: Study) -> Iterator[Apart]:
    """The jobs whose results settings of the study need, in the order of their use."""
    fixed = {name for name, value in study.space.fixed.items() if value}
    names = {entry.name for entry in study.space.entries} | fixed
    if not is_own(study.config["engine"]) or study.config["rehearse"]:
        return
    from engine.plan.ceiling import routing_file, routing_request  # they import MLX, which another engine does not need
    from engine.quality.reference import reference_knobs
    from engine.routing.profile import profile_file, profile_request

    source = opened(study.checkpoint, trust_code=study.config["model"]["trust_code"])

    def job(name: str, file: Path, given: str, knobs: Knobs) -> Apart:
        need: Any = study.engine.footprint(study.checkpoint, knobs)
        return Apart(("engine.cli.offline", name), given, file, float(need.predicted_peak_gb))

    if names & {"cold_bits", "pinned_share"}:
        least = study.engine.footprint(study.checkpoint, Knobs()).one_token_gb
        yield job("profile", profile_file(source), profile_request(source), Knobs(cache_gb=least))
    if {"ssd_gbps", "cache_gb"} <= names:
        protocol = Protocol.from_mapping(study.protocol)
        file = routing_file(source, study.judge, protocol)
        yield job("routing", file, routing_request(source, study.judge, protocol), reference_knobs(source))
