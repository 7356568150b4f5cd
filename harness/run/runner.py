"""One run: foreseen, guarded, measured in a child, judged, and made a row.

A run ends as a row, whatever becomes of it; only the user's wish to stop at once leaves none. Before the child starts, its
setting is on the disk (`running.json`, the crash journal): a run that took the machine down is a crash when the search comes
back, and is not tried again; one that merely lost its search is tried again, three times at most.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine import CheckpointError, Knobs, Protocol
from harness import ROOT, ResultsError, version
from harness.analysis.estimates import noise, points
from harness.decisions.reuse import quality_source, reference_figures, rival, too_large, typical_s, wrong_answer
from harness.machine import identity as machine
from harness.machine.processes import alive, created, end_group
from harness.machine.quiet import Watch, wait_until_quiet
from harness.numerics.speed_interval import speeds
from harness.propose.ask_tell import Proposal
from harness.results.columns import NAMES, SCHEMA_VERSION
from harness.results.files import write_json
from harness.results.metrics import QUALITY
from harness.results.rows import frame
from harness.schema import GuardsConfig
from harness.study.constraints import judge_row
from harness.study.manifest import JUDGE
from harness.study.study import Study

from .supervise import Interrupted, Outcome, run_child

MAX_STARTS = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What to measure: run `run` of a proposal, in a round, and why (the proposal's origin, or sentinel, confirm ...)."""

    proposal: Proposal
    run: int = 0
    origin: str = ""
    round: int = 1

    @property
    def name(self) -> str:
        return f"{self.proposal.trial:06d}-{self.run:02d}"


@dataclass(frozen=True)
class Rival:
    """The point that a setting has to beat: its trial, the lower end of its speed, and the noise from run to run."""

    trial: int
    tok_s: float
    noise: float


@dataclass
class Runner:
    """Measures the jobs of one study."""

    plan: Study
    sampler: Callable[[], str]  # the one in use
    interrupted: Callable[[], bool]
    note: Callable[[str], None]
    begun: Callable[[Job, int], None] = field(default=lambda job, pid: None)  # the child runs
    tokens: dict[tuple[int, int], Sequence[float]] = field(default_factory=dict)  # (trial, run) -> times, ms
    _patient: bool = True

    def __post_init__(self) -> None:
        self._files = self.plan.files

    def run(self, job: Job, rows: Sequence[Mapping[str, Any]]) -> tuple[Row, Sequence[float]]:
        """The job's row and its tokens' times, ms. Raises `Interrupted`, or `HeadraceError` for what ends the study, as
        another model in the place of the one that it searches does."""
        self._files = self.plan.check_model(self._files)
        plan, values = self.plan, job.proposal.values
        reason, predicted = plan.forbidden(values)
        if reason is None and not job.run and job.proposal.trial:
            reason = too_large(rows, values)
        attempt, fell = self._starts(job)
        attempt += job.proposal.starts
        source = quality_source(rows, values) if job.proposal.trial or job.run else None
        facts: Row = {"started_at": datetime.now(UTC), "predicted_peak_gb": predicted, "attempt": min(attempt, MAX_STARTS)}
        tokens: Sequence[float] = ()
        to_beat = None if reason else self._rival(job, rows, predicted, source)
        if fell:
            outcome = Outcome("crash", "the machine went down while it ran")
        elif attempt > MAX_STARTS:
            outcome = Outcome("crash", f"the search ended {MAX_STARTS} times while it ran; see logs/{self._log(job).name}")
        elif reason:
            outcome = Outcome("infeasible", reason)
        elif to_beat is not None and (beaten := self._beaten(job, to_beat)):
            outcome = Outcome("dominated", beaten)
        else:
            stop = None if to_beat is None else self._stop(to_beat, rows)
            outcome, facts = self._measure(job, attempt, source, stop, facts)
            tokens = outcome.token_ms
        row = self._row(job, outcome, facts)
        if source is not None and row["status"] in ("ok", "stopped"):
            self._take_quality(row, source)
        if row["status"] == "ok":
            row["feasible"], row["violated"] = judge_row(plan.constraints, row, reference_figures([*rows, row]))
        row["saved_s"] = self._saved(row, rows, outcome)
        return row, tokens

    def _measure(
        self, job: Job, attempt: int, source: Mapping[str, Any] | None, stop: Mapping[str, float] | None, facts: Row
    ) -> tuple[Outcome, Row]:
        plan, config = self.plan, self.plan.config
        guards = GuardsConfig(**config["guards"])
        if not self._patient:  # it waited for this in vain: once is enough until the machine is quiet again
            guards.wait_s = 0.0
        self._cool_down(config["protocol"]["cool_down_s"])
        quiet = wait_until_quiet(guards, note=self.note, interrupted=self.interrupted)
        if self.interrupted():
            raise Interrupted
        self._patient = quiet.reason is None
        facts = {**facts, "started_at": datetime.now(UTC)}
        request = {
            "trial": job.proposal.trial,
            "run": job.run,
            "attempt": attempt,
            "boot_id": machine.boot_id(),
            "engine": config["engine"]["module"],
            "command": config["engine"]["command"],
            "checkpoint": str(plan.checkpoint),
            "judge": str(plan.folder / JUDGE),
            "knobs": job.proposal.values,
            "protocol": {**plan.protocol, "score": source is None},
            "quality": {"kl": plan.wants_kl, "json_prompts": plan.json_prompts} if source is None else None,
            "stop": stop,
            "beat": str(plan.folder / "beat"),
        }
        running = plan.folder / "running.json"
        write_json(running, request)
        watch = Watch(guards, quiet)

        def started(pid: int) -> None:
            write_json(running.with_name("child.json"), {"pid": pid, "created": created(pid)})
            self.begun(job, pid)

        try:
            outcome = run_child(
                running,
                self._log(job),
                timeout_s=config["budget"]["trial_timeout_s"],
                hang_s=config["budget"]["hang_s"],
                limit_gb=plan.limit_gb,
                needed=[name for name in plan.objectives if source is None or name not in QUALITY],
                interrupted=self.interrupted,
                started=started,
                tick=watch.look,
            )
            self._files = plan.check_model(self._files)
        except (Interrupted, CheckpointError, ResultsError):
            write_json(running, {**request, "attempt": attempt - 1})  # not the setting's fault: it keeps its starts
            raise
        facts = {**facts, **watch.end(outcome.figures)}
        if outcome.status == "ok" and source is not None and (why := wrong_answer(source, outcome.figures)):
            outcome = Outcome(
                "wrong", why, seen_peak_gb=outcome.seen_peak_gb, wall_s=outcome.wall_s, log_tail=outcome.log_tail
            )
        return outcome, facts

    def _cool_down(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.interrupted():
            time.sleep(min(left, 0.2))

    def _rival(
        self, job: Job, rows: Sequence[Mapping[str, Any]], predicted: float, source: Mapping[str, Any] | None
    ) -> Rival | None:
        """The point that a new setting must be faster than to enter the front."""
        unknown = source is None and self.plan.scored
        if job.run or unknown or job.proposal.origin in ("reference", "anchor"):
            return None
        df = frame(rows)
        some = points(df)
        trial = rival(some, list(self.plan.objectives), predicted, source)
        if trial is None:
            return None
        return Rival(trial, float(some.loc[trial, "decode_tok_s_low"]), float(noise(df).loc["decode_tok_s", "sd"]))

    def _beaten(self, job: Job, to_beat: Rival) -> str | None:
        """Why a setting cannot enter the front, by arithmetic: reads held to a bandwidth bound its speed from above."""
        protocol = Protocol.from_mapping(self.plan.protocol)
        knobs = Knobs.from_mapping(job.proposal.values)
        ceiling = self.plan.engine.ceiling_tok_s(self.plan.checkpoint, knobs, self.plan.judge, protocol)
        if ceiling is None or ceiling >= to_beat.tok_s:
            return None
        return (
            f"at most {ceiling:.3g} tokens/s with ssd_gbps={knobs.ssd_gbps:g}; trial {to_beat.trial} does "
            f"{to_beat.tok_s:.3g} with no more memory and no worse quality"
        )

    def _stop(self, to_beat: Rival, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """What the child needs to stop a run that cannot enter the front any more: its rival's speed, token by token."""
        error = self.plan.config["protocol"]["stop_error"]
        trial = to_beat.trial
        run = next((r["run"] for r in rows if r["trial"] == trial and (trial, r["run"]) in self.tokens), None)
        if not error or run is None:
            return None
        times = [round(float(ms), 4) for ms in self.tokens[trial, run]]
        return {"below_tok_s": to_beat.tok_s, "error": error, "noise": to_beat.noise, "rival_ms": times}

    def _take_quality(self, row: Row, source: Mapping[str, Any]) -> None:
        row["quality_from_trial"] = source["trial"]
        for name in (*QUALITY, "perplexity_se", "nll", "scored_tokens"):
            row[name] = source[name]

    def _saved(self, row: Row, rows: Sequence[Mapping[str, Any]], outcome: Outcome) -> float | None:
        """Seconds not spent: on a run that was not made or not finished, or on a quality that was known."""
        typical = typical_s(rows)
        if row["status"] in ("infeasible", "dominated") and not row["wall_s"]:
            return typical
        if row["status"] == "stopped":
            return None if typical is None else max(0.0, typical - row["wall_s"])
        if row["quality_from_trial"] is not None:
            scored = [r["score_s"] for r in rows if r["score_s"] is not None]
            return statistics.median(scored) if scored else None
        return None

    def _starts(self, job: Job) -> tuple[int, bool]:
        """The number of this start of a run (those before were cut off), and whether the machine went down with the last
        one. A child that outlived its search is ended."""
        running = self.plan.folder / "running.json"
        try:
            request = json.loads(running.read_text())
        except (OSError, ValueError):
            return 1, False
        _end_orphan(running.with_name("child.json"))
        if (request["trial"], request["run"], request["knobs"]) != (job.proposal.trial, job.run, job.proposal.values):
            return 1, False  # another setting has the number if the storage was lost
        fell = request["attempt"] > 0 and None not in (request["boot_id"], machine.boot_id())
        return int(request["attempt"]) + 1, fell and request["boot_id"] != machine.boot_id()

    def _log(self, job: Job) -> Path:
        return self.plan.folder / "logs" / f"trial-{job.name}.log"

    def _row(self, job: Job, outcome: Outcome, facts: Mapping[str, Any]) -> Row:
        plan, config = self.plan, self.plan.config
        row: Row = dict.fromkeys(NAMES)
        row.update(Knobs.from_mapping(job.proposal.values).as_dict(), **plan.computes_on)
        row.update({k: v for k, v in outcome.figures.items() if k in row})
        row.update(machine.identity())
        row.update(facts)
        if outcome.token_ms:
            row.update(speeds(outcome.token_ms))
        row.update(
            row_id=uuid.uuid4().hex,
            schema_version=SCHEMA_VERSION,
            headrace_version=version(),
            trial=job.proposal.trial,
            run=job.run,
            round=job.round,
            status=outcome.status,
            status_reason=self._portable(outcome.reason),
            origin=job.origin or job.proposal.origin,
            proposer=job.proposal.proposer or None,
            note=job.proposal.note or None,
            log_tail=self._portable(outcome.log_tail),
            objectives=",".join(plan.objectives),
            seen_peak_gb=outcome.seen_peak_gb,
            wall_s=outcome.wall_s,
            score_s=outcome.score_s,
            study=plan.name,
            seed=plan.seed,
            sampler=self.sampler(),
            sampler_seed=job.proposal.seed,
            space=plan.space_fingerprint,
            eval_fingerprint=plan.judge.fingerprint,
            eval_texts=plan.judge_name,
            model=plan.model,
            architecture=plan.architecture,
            model_fingerprint=plan.model_fingerprint,
            limit_gb=plan.limit_gb,
            engine=config["engine"]["command"] or config["engine"]["module"],
            **plan.protocol,
        )
        return row

    def _portable(self, text: str | None) -> str | None:
        """A text of a log without this machine's paths: rows are meant to be shared."""
        places = {self.plan.checkpoint: self.plan.model, self.plan.folder: self.plan.name, Path(sys.prefix): "python",
                  ROOT: "headrace", Path.home(): "~"}  # fmt: skip
        for place, name in places.items():
            if text and len(place.parts) > 1:
                text = text.replace(str(place), name)
        return text


def _end_orphan(path: Path) -> None:
    try:
        child = json.loads(path.read_text())
        if alive(child["pid"], child["created"]):
            end_group(child["pid"])
    except (OSError, ValueError, KeyError):
        pass
