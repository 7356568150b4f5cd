"""Runner: one job becomes one row, pruned by arithmetic or measured in a child process under guards.

Every job ends as a row; only an interrupt by the user leaves none. The request is on the disk before the child starts (see
`harness.run.in_flight`), so that a run that took the machine down is known after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from engine import CheckpointError, Knobs
from engine.checkpoint.fingerprint import State
from engine.checkpoint.known import keep, opened
from engine.measure.protocol import REAL
from harness import ResultsError
from harness.decisions.reuse import quality_source, reference_figures, settled_source, wrong_answer
from harness.machine.clocks import Calendar, SessionClock
from harness.machine.identity import boot_id
from harness.machine.load import Beginning, Meters
from harness.machine.quiet import Watch, wait_until_quiet
from harness.propose.outcomes import log_of
from harness.results.history import History
from harness.results.metrics import QUALITY
from harness.schema import GuardsConfig
from harness.study.constraints import checked
from harness.study.engines import is_own
from harness.study.manifest import JUDGE
from harness.study.study import Study

from .children import Children
from .in_flight import MAX_STARTS, InFlight, Start
from .job import Job, Row
from .row import copy_quality, make_row, saved_s
from .stopping.pruning import dominated, infeasible, rival_of, score_rule, stop_rule
from .supervise import TIMED, Interrupted, Outcome, run_child

NLL = "reference_nll.npy"  # file in the study's folder: nll of each scored token of the unchanged model
KNOWN = "checkpoint.known"  # file in the study's folder: see `engine.checkpoint.known`
SLEEP_ENDS = ("hang", "timeout", "crash")  # ends that sleep may cause: a device or a share is gone after it


@dataclass
class Runner:
    """Runs the jobs of one study. `sampler` returns the name of the sampler in use, `begun` receives the child's process."""

    study: Study
    sampler: Callable[[], str]
    interrupted: Callable[[], bool]
    note: Callable[[str], None]
    begun: Callable[[Job, int], None] = field(default=lambda job, pid: None)
    forecast: Callable[[Mapping[str, Any], Sequence[Row], datetime], Mapping[str, float]] = field(
        default=lambda values, rows, when: {}
    )  # columns of a row that is about to be measured, from the rows of this machine
    tokens: dict[tuple[int, int], Sequence[float]] = field(default_factory=dict)  # (trial, run) -> times, ms
    calendar: Calendar = field(default_factory=Calendar)
    clock: SessionClock = field(default_factory=SessionClock)
    _patient: bool = True
    _look: Beginning | None = None

    def __post_init__(self) -> None:
        self._files = self.study.files
        self.in_flight = InFlight(self.study.folder)
        engine = self.study.config["engine"]
        self._children = Children(self.in_flight.request, "" if engine["command"] else engine["module"])
        self._known = self.study.folder / KNOWN
        self._nll = self.study.folder / NLL
        self._known_files: State | None = None  # the checkpoint's files when it was written

    def run(self, job: Job, history: History) -> tuple[Row, Sequence[float]]:
        """The job's row and its token times in ms. Raises `Interrupted`, or `HeadraceError` for what ends the study, such
        as another model in the checkpoint's folder."""
        self._files = self.study.check_model(self._files)
        study, rows, values = self.study, history.known, job.proposal.values
        reason, predicted_gb = infeasible(study, job, rows)
        start = self.in_flight.start(job)
        attempt = start.attempt + job.proposal.starts
        source = quality_source(rows, values) if job.proposal.trial or job.run else None
        if source is None and job.origin != "confirm":
            source = settled_source(rows, job.proposal.trial, values, study.objectives, study.constraints)
        facts: Row = {
            "started_at": self.calendar.now(), "sequence": history.next_sequence, "predicted_peak_gb": predicted_gb,
            "attempt": min(attempt, MAX_STARTS), "session": self.clock.name,
        }  # fmt: skip
        facts |= {} if reason else self.forecast(values, history.own, facts["started_at"])
        if start.lost_s:
            self.clock.take_over(start.lost_s)
            facts["lost_s"] = start.lost_s  # also if it is not tried again
        to_beat = None if reason else rival_of(study, job, history, predicted_gb, source)
        outcome = self._crashed(job, start, attempt)
        if outcome is None and reason:
            outcome = Outcome("infeasible", reason)
        if outcome is None and to_beat is not None and (too_slow := dominated(study, job, to_beat)):
            outcome = Outcome("dominated", too_slow)
        if outcome is None:
            stop = None if to_beat is None else stop_rule(study, to_beat, rows, self.tokens)
            scoring = score_rule(study, job, history, str(self._nll)) if source is None else None
            stops = {"stop": stop, "stop_scoring": scoring}
            outcome, measured = self._measure_awake(job, attempt, source, stops, start.lost_s)
            facts |= measured
        else:
            facts["between_s"] = self.clock.since_run()
            self.clock.ran()
        row = make_row(study, job, outcome, facts, self.sampler())
        if source is not None and row["status"] in ("ok", "stopped"):
            copy_quality(row, source)
        if row["status"] == "ok":
            row["feasible"], row["violated"] = checked(study.constraints, row, reference_figures([*rows, row]))
        row["saved_s"] = saved_s(row, rows)
        row["session_s"] = self.clock.s()
        return row, outcome.token_ms

    def close(self) -> None:
        """End the child that waits for a next run, and remove what it would read."""
        self._children.close()
        self._known.unlink(missing_ok=True)

    def _crashed(self, job: Job, start: Start, attempt: int) -> Outcome | None:
        """The outcome of a run that is not tried again; None if it is."""
        if start.machine_fell:
            return Outcome("crash", "the machine went down during the run")
        if attempt > MAX_STARTS:
            return Outcome("crash", f"the search ended {MAX_STARTS} times during the run; see logs/{self._log(job).name}")
        return None

    def _measure_awake(
        self, job: Job, attempt: int, source: Mapping[str, Any] | None, stops: Mapping[str, Any], lost_s: float
    ) -> tuple[Outcome, Row]:
        """`_measure`, and once more if the run failed after the machine slept: the setting did not cause that."""
        outcome, facts = self._measure(job, attempt, source, stops, lost_s)
        if outcome.slept_s and outcome.status in SLEEP_ENDS:
            self.note(
                f"trial {job.name}: {outcome.status} ({outcome.reason}) after the machine slept or stood still for "
                f"{outcome.slept_s:.0f} s; it is measured again"
            )
            before, lost_s = facts, lost_s + outcome.wall_s + outcome.slept_s
            outcome, facts = self._measure(job, attempt, source, stops, lost_s)
            facts |= {name: before[name] + facts[name] for name in ("between_s", "cool_down_s", "waited_s")}
        return outcome, facts

    def _measure(
        self, job: Job, attempt: int, source: Mapping[str, Any] | None, stops: Mapping[str, Any], lost_s: float
    ) -> tuple[Outcome, Row]:
        """The outcome of a measured run, and the columns of its start and its guards."""
        study, config = self.study, self.study.config
        guards = GuardsConfig(**config["guards"])
        self._children.prepare(job.proposal.values)
        if not self._patient:  # after a wait without success, do not wait again until the machine is quiet
            guards.wait_s = 0.0
        cool_down_s = self._cool_down(config["protocol"]["cool_down_s"])
        quiet = wait_until_quiet(guards, note=self.note, interrupted=self.interrupted, begun=self._look)
        if self.interrupted():
            raise Interrupted
        self._patient = quiet.reason is None
        started_at = self.calendar.now()
        request = self._request(job, attempt, source, stops, lost_s)
        self.in_flight.write(request)
        watch = Watch(guards, quiet)
        between_s = max(0.0, self.clock.since_run() - cool_down_s - quiet.waited_s)

        def started(pid: int) -> None:
            self.in_flight.write_child(pid)
            self.begun(job, pid)

        self.clock.ran()  # so that the time since is that of this run, should it be interrupted
        try:
            outcome = run_child(
                self._children,
                self._log(job),
                timeout_s=config["budget"]["trial_timeout_s"],
                hang_s=config["budget"]["hang_s"],
                limit_gb=study.limit_gb,
                needed=[name for name in study.objectives if source is None or name not in QUALITY],
                interrupted=self.interrupted,
                started=started,
                tick=watch.look,
            )
            self.clock.ran()
            self._look = Beginning(Meters()) if guards.wait_s else None  # it ends before the next run
            self._files = study.check_model(self._files)
        except (Interrupted, CheckpointError, ResultsError):
            self.in_flight.take_back(request, self.clock.since_run())
            raise
        facts = {"started_at": started_at, "between_s": between_s, "cool_down_s": cool_down_s, "lost_s": lost_s or None}
        facts |= watch.end(outcome.figures, outcome.slept_s)
        if outcome.status == "ok" and source is not None and (why := wrong_answer(source, outcome.figures)):
            outcome = replace(outcome, status="wrong", reason=why, figures={}, token_ms=(), score_s=None)
        return outcome, facts

    def _request(
        self, job: Job, attempt: int, source: Mapping[str, Any] | None, stops: Mapping[str, Any], lost_s: float
    ) -> dict[str, Any]:
        """What `harness.run.worker` reads, and the fields of the record in flight."""
        study, engine, lossy = self.study, self.study.config["engine"], Knobs.from_mapping(job.proposal.values).lossy
        return {
            "trial": job.proposal.trial,
            "run": job.run,
            "attempt": attempt,
            "lost_s": lost_s,
            "boot_id": boot_id(),
            "engine": engine["module"],
            "command": engine["command"],
            "checkpoint": str(study.checkpoint),
            "trust_code": study.config["model"]["trust_code"],
            "known": self._write_known(),
            "judge": str(study.folder / JUDGE),
            "knobs": job.proposal.values,
            "protocol": {
                **study.protocol, "score": source is None and not study.config["rehearse"],
                "prefill": REAL if job.real_prefill else study.prefill,
            },
            "kept_gb": study.config["protocol"]["kept_gb"],
            "limit_gb": study.limit_gb,
            "quality": {"kl": study.wants_kl, "json_prompts": study.json_prompts} if source is None else None,
            **stops,
            "keep_nll": None if lossy or source is not None or self._nll.exists() else str(self._nll),
            "beat": str(study.folder / "beat"),
            "timed": str(study.folder / TIMED),
        }  # fmt: skip

    def _write_known(self) -> str | None:
        """The file with what is known of the checkpoint, so that no run parses and hashes it again. None: another engine."""
        study = self.study
        if not is_own(study.config["engine"]):
            return None
        if self._known_files != self._files:
            keep(opened(study.checkpoint, trust_code=study.config["model"]["trust_code"]), self._known)
            self._known_files = self._files
        return str(self._known)

    def _cool_down(self, seconds: float) -> float:
        """Pause before a run; returns the seconds that it took."""
        begin = time.monotonic()
        while (left := begin + seconds - time.monotonic()) > 0 and not self.interrupted():
            time.sleep(min(left, 0.2))
        return time.monotonic() - begin

    def _log(self, job: Job) -> Path:
        return self.study.folder / log_of(job.proposal.trial, job.run)
