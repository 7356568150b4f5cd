"""The loop of a study: propose, measure in a child, write the row, tell. Killed at any moment, it goes on where it was.

The order is the guarantee: a proposal is in the storage before its child starts, its row is on the disk before Optuna is
told, and what differs at the next start is put right from the rows. All that the loop decides (whether a sentinel is due,
what to confirm, which round it is in) it reads off the rows, so that a search that was killed decides as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from engine.errors import first_line
from harness import ROOT, ConfigError, ResultsError, StudyStopped
from harness.analysis.counts import Progress, confirm_budget, confirmations, count, progress
from harness.analysis.estimates import noise, suspects
from harness.analysis.findings import read
from harness.analysis.pareto import front
from harness.decisions.confirmation import next_sweep
from harness.decisions.drift import drifted, due, judge_sentinel, sentinel_trial
from harness.decisions.reuse import settings_of, typical_s
from harness.machine import identity as machine
from harness.machine.quiet import check_disk, keep_awake, machine_lock
from harness.propose.ask_tell import Proposal, Proposals, Search, open_storage
from harness.propose.external import ask_external, study_state
from harness.propose.shared import Shared, owner_of, settle_shared
from harness.propose.storage import AWAY, alone, open_database, reason
from harness.results.columns import NOT_RUN
from harness.results.rows import frame, read_rows, read_tokens
from harness.results.writing import compact, refresh, set_damaged_aside, write_row, write_tokens
from harness.rounds.journal import append, entry
from harness.rounds.next_space import next_space
from harness.rounds.repeat import command, same_command
from harness.rounds.round import Outside, Round, legal, rounds
from harness.rounds.verdict import verdict as judge_round
from harness.run.runner import Job, Row, Runner
from harness.run.supervise import Interrupted
from harness.schema import GuardsConfig
from harness.space.changes import applied, still_possible
from harness.study.checks import check_writable
from harness.study.manifest import locked, settle
from harness.study.study import Study

from .log import close_log, open_log, streak
from .state import write_state

MOST_FAILURES = 10  # in a row, of one cause
MOST_DRAWS = 20  # settings that are not run, for each that is
MOST_AGAIN = 0.5  # runs to measure suspect settings again, as a share of the settings
MOST_AGAIN_EACH = 2
PATIENCE_S = 600  # with a shared database that cannot be reached
T = TypeVar("T")


class Watcher(Protocol):
    """Who is told how the study goes: see `harness.show.live`."""

    def note(self, text: str) -> None: ...
    def begin(self, job: Job, rows: list[Row], progress: Progress) -> None: ...
    def end(self, row: Row, rows: list[Row], progress: Progress) -> None: ...


@dataclass
class Stop:
    """What the user asked for with Ctrl-C: `soon` after this run, `now` at once."""

    soon: bool = False
    now: bool = False


def run_study(plan: Study, watcher: Watcher, stop: Stop, warn: Callable[[str], None]) -> tuple[list[Row], Progress]:
    """Measure until the budget is spent or `stop` says so; returns the study's rows and how far it is. Raises
    `HeadraceError`."""
    check_writable(plan.folder)
    guards = GuardsConfig(**plan.config["guards"])
    with contextlib.ExitStack() as held:
        held.enter_context(in_one_line(plan))
        held.enter_context(locked(plan.folder))
        if guards.alone:
            held.enter_context(machine_lock(plan.folder))
        shared = open_shared(plan)  # first: what is refused leaves nothing behind
        settle(plan, same_command())
        log = open_log(plan.folder)
        held.callback(close_log, log)
        for line in set_damaged_aside(plan.folder):
            warn(line)
            log.warning(line)
        if guards.keep_awake:
            held.enter_context(keep_awake(log.info))
        night = Night(plan, guards, watcher, stop, log, shared)
        try:
            night.search()
        except BaseException as e:
            night.state("failed", message=first_line(e))
            log.error("%s: %s", type(e).__name__, e)
            raise
        finally:
            with contextlib.suppress(ResultsError):  # of a full disk, which was said
                compact(plan.folder)
        if night.complete:
            night.confirming = None
        night.state("stopped" if stop.soon or stop.now or not night.complete else "finished")
        log.info("%s with %d rows", "finished" if night.complete else "stopped", len(night.rows))
    return night.known, night.progress()


def open_shared(plan: Study) -> optuna.storages.RDBStorage | None:
    """The database of a shared study, if it is one and this machine may take part. Raises `ConfigError`."""
    config = plan.config["storage"]
    if config["url"] is None:
        return None
    storage = open_database(config["url"], config["stale_s"])
    try:
        settle_shared(storage, plan)
    except AWAY as e:
        raise ConfigError(f"storage.url cannot be reached any more ({reason(e)}); run it again") from e
    return storage


@contextlib.contextmanager
def in_one_line(plan: Study) -> Iterator[None]:
    """A disk that is full shows wherever something is written: then, as when the storage fails, raises `ResultsError`."""
    try:
        yield
    except OSError as e:
        problem = f"{e.filename or plan.folder} cannot be used ({e.strerror or e})"
        raise ResultsError(f"{problem}; make room if its disk is full, then run the same command again") from e
    except AWAY as e:
        raise ResultsError(
            f"the storage of {plan.name} cannot be used ({first_line(e.__cause__ or e)}); all rows are on the disk: make "
            "room if it is full, then run the same command again"
        ) from e


class Night:
    """One run of the command over a study."""

    def __init__(
        self,
        plan: Study,
        guards: GuardsConfig,
        watcher: Watcher,
        stop: Stop,
        log: logging.Logger,
        shared: optuna.storages.RDBStorage | None = None,
    ) -> None:
        self.plan, self.guards, self.watcher, self.stop, self.log = plan, guards, watcher, stop, log
        compact(plan.folder)
        self.rows: list[Row] = read_rows(plan.folder)
        self.complete = False  # the budget is spent
        self.confirming: int | None = None  # the round whose confirmation has begun
        self._storage = shared or open_storage(plan.folder)
        self._owner = owner_of(plan.folder) if shared else ""
        self._shared: Shared | None = None
        self._others: list[Row] = []  # of other machines
        self._reference_elsewhere = False  # another machine measures it
        self._unsure = True  # whether a setting is ours that has no row
        self._since, self._begin = datetime.now(UTC), time.monotonic()
        self._first_round = rounds(plan)[-1].number
        self._sweeps = 0
        self._proposals: Proposals | None = None
        self._runner = Runner(plan, self._sampler_name, lambda: stop.now, self._note, self._begun)
        for (trial, run), some in read_tokens(plan.folder).groupby(["trial", "run"]):
            self._runner.tokens[int(trial), int(run)] = some["wall_ms"].to_numpy()

    def search(self) -> None:
        """Round by round until the budget is spent."""
        while not (self.complete or self._ended()):
            one = rounds(self.plan)[-1]
            self._proposals = self._patiently(lambda one=one: self._proposals_of(one))  # type: ignore[misc]
            self._note(self._proposals.why)
            if one.number == self._first_round:
                self._note_changes()
            self._explore(one)
            if self._ended() and not self._out_of_time(one, confirmed=False):
                return
            self._confirm(one)
            if self._ended():
                return
            self._conclude(one)
            self.complete = one.number >= self.plan.rounds

    # The phases of a round.

    def _explore(self, one: Round) -> None:
        wanted = self.plan.trials * min(one.number, self.plan.rounds) // self.plan.rounds
        jobs = self._jobs(one, wanted)
        while not self._ended() and not self._out_of_time(one, confirmed=False):
            elsewhere = self._look_at_others()
            if self._tried() + elsewhere < wanted:
                if (job := next(jobs)) is not None:
                    self._do(job, "exploring")
            elif elsewhere:  # they may vanish
                self._sleep(1)
            elif self._lacks_reference():  # they did
                self._do(Job(Proposal(0, "reference", {}), round=one.number), "exploring")
            else:
                return

    def _look_at_others(self) -> int:
        """Take up what other machines told; returns how many trials run there."""
        if self._shared is None:
            return 0
        if count := self._patiently(self._shared.take_over):
            self._note(f"{count} trials of a machine that vanished are put up again")
        self._others, running = self._patiently(self._shared.look)
        return running

    def _patiently(self, what: Callable[[], T]) -> T:
        """Wait for a shared database that is away for a while."""
        for attempt in itertools.count():
            try:
                return what()
            except AWAY as e:
                self._unsure = True
                if not self._owner:
                    raise
                if attempt >= PATIENCE_S / 5 or self._ended():
                    raise StudyStopped(
                        f"the storage cannot be reached ({reason(e)}); all rows are on the disk: run it again"
                    ) from e
                if not attempt:
                    self._note(f"the storage cannot be reached ({reason(e)}); trying again for {PATIENCE_S} s")
                self._sleep(5)
        raise AssertionError("unreachable")

    def _lacks_reference(self) -> bool:
        """Whether another machine took the reference and has not told it."""
        return self._reference_elsewhere and not any(row["origin"] == "reference" for row in self.known)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._ended():
            time.sleep(0.1)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of a study that machines share."""
        return alone(self._storage, self.plan.name) if self._owner else contextlib.nullcontext()

    @property
    def known(self) -> list[Row]:
        """All rows there are, those of other machines among them."""
        return sorted([*self.rows, *self._others], key=lambda r: (r["trial"], r["run"])) if self._others else self.rows

    def _jobs(self, one: Round, wanted: int) -> Iterator[Job | None]:
        """The reference, what an earlier run left open, then new proposals without end, with what is due between them. None
        if other machines took the last of the `wanted` settings."""
        assert self._proposals is not None
        if not any(row["origin"] == "reference" for row in self.known):
            if self._shared and not any(c.relative for c in self.plan.constraints):  # else each needs it first
                self._reference_elsewhere = not self._patiently(self._shared.claim_reference)
            if self._reference_elsewhere:
                pass
            elif self.plan.reference_gb <= self.plan.limit_gb:
                yield Job(Proposal(0, "reference", {}), round=one.number)
            else:
                self._note(
                    f"no reference: with everything resident it would take {self.plan.reference_gb:.3g} GB, "
                    f"above the limit of {self.plan.limit_gb:.3g} GB"
                )
        while True:
            for proposal in self._patiently(self._left_open):  # and what we took when the database went away
                yield Job(proposal, round=one.number)
            self._ask_outside(one)
            job = self._due(one)
            if job is None and (new := self._patiently(lambda: self._ask(wanted))) is not None:
                job = Job(new, round=one.number)
            yield job
            self._refuse_hopeless_space()

    def _left_open(self) -> list[Proposal]:
        """What we have taken and not measured; from now on nobody takes it over."""
        assert self._proposals is not None
        if not self._unsure:
            return []
        self._unsure = False
        with self._alone():
            found = self._proposals.pending(self.rows)
            for proposal in found:
                if self._shared:
                    self._shared.beat(proposal.trial)
            return found

    def _ask(self, wanted: int) -> Proposal | None:
        """A new setting, if there are not `wanted` ones yet."""
        assert self._proposals is not None
        with self._alone():
            if self._shared:
                self._others, running = self._shared.look()
                if self._tried() + running >= wanted:
                    return None
            return self._propose()

    def _propose(self) -> Proposal:
        assert self._proposals is not None
        before = self._proposals.sampler
        proposal = self._proposals.ask(typical_s(self.known))
        if self._proposals.sampler != before:
            self._note(self._proposals.why)
        return proposal

    def _due(self, one: Round) -> Job | None:
        """What is to be measured once more before a new setting is: a repeat, the sentinel, a suspect run."""
        config = self.plan.config
        newest = max((r for r in self.rows if r["run"] == 0), key=lambda r: r["started_at"], default=None)
        if newest is not None and newest["status"] == "ok":
            repeats = sum(r["trial"] == newest["trial"] and r["origin"] == "repeat" for r in self.rows)
            if repeats < config["protocol"]["repeats"] - 1:
                return self._once_more(newest["trial"], "repeat", one)
        if due(self.rows, sentinel_trial(self.known), config["sentinel"]["every"]):
            trial = sentinel_trial(self.known)
            assert trial is not None
            return self._once_more(trial, "sentinel", one)
        for trial in self._suspects():
            return self._once_more(trial, "again", one)
        return None

    def _confirm(self, one: Round) -> None:
        """Measure again what looks like the front, until it is stable or the runs set aside for that are spent."""
        rules = self.plan.config["confirm"]
        budget = confirm_budget(self.rows, one.number, rules["share"])
        while not self._ended() and not self._out_of_time(one, confirmed=True):
            spent = confirmations(self.rows, one.number)
            trials = next_sweep(
                frame(self.known), **self.plan.rules, **self.plan.config["recommend"],
                spent=spent, budget=budget, sweep=self._sweeps,
                own={r["trial"] for r in self.rows if r["run"] == 0},  # each machine confirms what it measured
            )  # fmt: skip
            self._sweeps += 1
            if not trials:
                return
            for trial in trials:
                if self._ended() or self._out_of_time(one, confirmed=True):
                    return
                while (job := self._due(one)) is not None and not self._ended():
                    self._do(job, "confirming")
                self._do(self._once_more(trial, "confirm", one), "confirming")

    def _do(self, job: Job, phase: str) -> None:
        """Measure one job: its row is on the disk before anybody is told."""
        check_disk(self.guards, self.plan.folder)
        self.confirming = job.round if phase == "confirming" else None
        self.state(phase, job)
        self.watcher.begin(job, self.known, self.progress())
        with contextlib.ExitStack() as held:
            if self._shared and not job.run and job.proposal.trial:
                held.enter_context(self._shared.beating(job.proposal.trial))
            self._measure(job)

    def _measure(self, job: Job) -> None:
        try:
            row, tokens = self._runner.run(job, self.known)
        except Interrupted:
            return
        if row["origin"] == "sentinel":
            judge_sentinel(
                row, self.known, self.plan.config["sentinel"]["drift"], noise(frame(self.known)).loc["decode_tok_s", "sd"]
            )
        if tokens:
            write_tokens(self.plan.folder, row["row_id"], row["trial"], row["run"], tokens)
            self._runner.tokens[row["trial"], row["run"]] = tokens
        write_row(self.plan.folder, row)
        self.rows.append(row)
        self.rows.sort(key=lambda r: (r["trial"], r["run"]))
        assert self._proposals is not None
        proposals = self._proposals
        self._patiently(lambda: proposals.tell(row, self.known))
        if self._shared and row["origin"] == "reference":
            shared = self._shared
            self._patiently(lambda: shared.tell_reference(row))
        (self.plan.folder / "running.json").unlink(missing_ok=True)
        refresh(self.plan.folder)
        self.log.info("trial %s %s %s %s", job.name, row["origin"], row["status"], row["status_reason"] or "")
        self.watcher.end(row, self.known, self.progress())
        count, why = streak(self.rows, self._since)
        if count >= MOST_FAILURES:
            raise StudyStopped(
                f"{count} runs failed in a row with one cause ({why}); mend it, then run the same command again"
            )

    def _once_more(self, trial: int, origin: str, one: Round) -> Job:
        """The next run of a trial that was measured before."""
        runs = [r for r in self.known if r["trial"] == trial]
        first = runs[0]
        proposal = Proposal(trial, origin, settings_of(first), first["proposer"] or "", "", first["sampler_seed"])
        return Job(proposal, 1 + max(r["run"] for r in runs), origin, one.number)

    def _suspects(self) -> list[int]:
        """The trials to measure again now: none while the machine is as it was when they became suspect."""
        doubted = any(r["suspect"] is not None or r["drift_since"] is not None for r in self.rows)
        if not doubted or drifted(self.rows):
            return []
        again = [r["trial"] for r in self.rows if r["origin"] == "again"]
        if len(again) >= MOST_AGAIN * self.plan.trials:
            return []
        return [t for t in suspects(frame(self.rows)) if again.count(t) < MOST_AGAIN_EACH]

    # The rounds.

    def _proposals_of(self, one: Round) -> Proposals:
        plan, config = self.plan, self.plan.config
        search = Search(
            plan.objectives, plan.constraints, config["sampler"]["name"], config["sampler"]["options"],
            config["sampler"]["random_every"], plan.seed, plan.limit_gb,
        )  # fmt: skip
        name = plan.name if one.number == 1 else f"{plan.name} round {one.number}"
        anchors = plan.anchors if one.number == 1 else []
        with self._alone():
            proposals = Proposals(
                self._storage, name, search, one.space, anchors, self.rows, dropped=one.dropped, owner=self._owner
            )
        if self._owner:
            self._shared = Shared(proposals.study, self._storage, self._owner, config["storage"]["stale_s"])
        return proposals

    def _conclude(self, one: Round) -> None:
        """Read the round's result, judge it, say so in the journal, and propose the space of the next."""
        plan, after = self.plan, frame(self.known)
        before = after[after["round"] < one.number]
        verdict = judge_round(before, after)
        base = one if verdict.kept else next((r for r in reversed(rounds(plan)[:-1]) if kept(r, plan)), one)
        said = one.outside(plan)
        outside = still_possible(said.changes, base.space, legal(plan)) if one.number < plan.rounds else []
        space = applied(base.space, outside)
        reading = read(after, space, plan.objectives)
        proposed = [*outside, *next_space(reading, space, legal(plan))]  # of the last round: for one that may come
        again = command(plan, one.number, count([r for r in self.rows if r["round"] == one.number]).trials)
        text = entry(
            one.number, one.believed, one.space, before, after, plan.objectives, reading, verdict, proposed, again,
            said.refused, **plan.rules,
        )  # fmt: skip
        append(plan.folder, one.number, text)
        self._note(f"round {one.number}: {verdict.evidence}")
        one.end(plan, verdict.kept, verdict.evidence, base.number, proposed)

    # The proposer outside.

    def _ask_outside(self, one: Round) -> None:
        """Let the command outside propose, every so many settings; what is refused is noted, and the night goes on."""
        config, count = self.plan.config["proposer"], sum(r["run"] == 0 for r in self.rows)
        if config["command"] is None or count - max(r.outside(self.plan).asked for r in rounds(self.plan)) < config["every"]:
            return
        df = frame(self.known)
        told = study_state(
            self.plan.name, self.plan.objectives, [c.text for c in self.plan.constraints], one.space, legal(self.plan),
            self.known, [int(t) for t in front(df, **self.plan.rules).index],
            {"trials": self.plan.trials - self._tried()},
        )  # fmt: skip
        answer = ask_external(
            config["command"], told, config["timeout_s"], one.space, legal(self.plan), lambda: self.stop.now
        )
        refused = list(answer.refused)
        if answer.changes and one.number == self.plan.rounds:
            refused.append(
                f"{len(answer.changes)} changes of the space: round {one.number} is the last (rounds={one.number})"
            )
        proposals = self._proposals
        assert proposals is not None
        offered = 0
        for values in answer.settings:
            try:
                offered += self._patiently(lambda v=values: proposals.offer(v, config["command"], answer.note))  # type: ignore[misc]
            except ConfigError as e:  # it fits the changed space, not this one
                refused.append(str(e))
        said = one.outside(self.plan)
        one.hear(self.plan, Outside(count, (*said.changes, *answer.changes), (*said.refused, *refused)))
        self._note(f"proposer: {offered} settings, {len(answer.changes)} changes, {len(refused)} refused")
        for line in refused:
            self._note(f"refused from the proposer: {line}")

    # Budgets.

    def _tried(self) -> int:
        return count(self.known).trials

    def _refuse_hopeless_space(self) -> None:
        idle = sum(r["run"] == 0 and r["status"] in NOT_RUN for r in self.rows)
        if idle > MOST_DRAWS * max(10, self._tried()):
            last = next(r for r in reversed(self.rows) if r["status"] in NOT_RUN)
            raise StudyStopped(
                f"{idle} settings were drawn that cannot run, and {self._tried()} that can (the last: "
                f"{last['status_reason']}); narrow the search space, or allow more memory"
            )

    def _ended(self) -> bool:
        return self.stop.soon or self.stop.now

    def _out_of_time(self, one: Round, *, confirmed: bool) -> bool:
        """Whether this round's share of the hours is over; before confirmation, the part without it."""
        hours, share = self.plan.config["budget"]["hours"], self.plan.config["confirm"]["share"]
        if hours is None:
            return False
        rounds_here = self.plan.rounds - self._first_round + 1
        each = 3600 * hours / max(1, rounds_here)
        end = each * (one.number - self._first_round) + each * (1 if confirmed else 1 / (1 + share))
        return time.monotonic() - self._begin >= end

    # What is said of it.

    def progress(self) -> Progress:
        share = self.plan.config["confirm"]["share"]
        return progress(self.known, self.rows, self.plan.trials, share, self.confirming)

    def state(self, phase: str, job: Job | None = None, message: str = "") -> None:
        """Tell `harness.status`."""
        write_state(
            self.plan.folder,
            phase=phase,
            since=time.time(),
            started=self._since.timestamp(),
            **dataclasses.asdict(self.progress()),
            hours=self.plan.config["budget"]["hours"],
            message=message,
            **(
                {}
                if job is None
                else {
                    "round": job.round,
                    "trial": job.proposal.trial,
                    "run": job.run,
                    "origin": job.origin or job.proposal.origin,
                }
            ),
        )

    def _note(self, text: str) -> None:
        self.log.info(text)
        self.watcher.note(text)

    def _begun(self, job: Job, pid: int) -> None:
        self.log.info("trial %s runs in process %d", job.name, pid)

    def _sampler_name(self) -> str:
        assert self._proposals is not None
        return self._proposals.sampler

    def _note_changes(self) -> None:
        """Things that do not forbid to go on, but that a reader of the rows wants to know."""
        now = machine.identity()
        before = {row["commit"] for row in self.rows} - {now["commit"], None}
        if before:
            self._note(f"earlier rows were measured with commit {', '.join(sorted(c[:9] for c in before))}")
        if (held := held_by_device(self.plan)) is not None:
            self._note(held)
        asked = self.plan.config["device"]["memory_gb"]
        if asked and asked > machine.memory_gb():
            self._note(f"device.memory_gb={asked:g} is more than this machine has ({machine.memory_gb():.1f} GB)")


def held_by_device(plan: Study) -> str | None:
    """A line if the device's file holds reads to a bandwidth and the model is the user's own, who may not know."""
    held = plan.space.fixed.get("ssd_gbps")
    if held is None or not HydraConfig.initialized() or plan.checkpoint.is_relative_to(ROOT / "experiments"):
        return None
    choice, asked = HydraConfig.get().runtime.choices["device"], HydraConfig.get().overrides.task
    device = OmegaConf.load(ROOT / "experiments" / "device" / f"{choice}.yaml")
    if OmegaConf.select(device, "knobs.ssd_gbps") != held or any("knobs.ssd_gbps=" in override for override in asked):
        return None
    return f"reads are held to {held:g} GB/s by device={choice}; without: '~knobs.ssd_gbps'"


def kept(one: Round, plan: Study) -> bool:
    """Whether a round that ended was kept."""
    verdict = one.verdict(plan)
    return verdict is not None and bool(verdict["kept"])
