"""Entry point of a session: check and lock the study's folder, then search until the budget is spent or the user stops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import optuna

from engine.errors import first_line
from harness import ConfigError, ResultsError
from harness.analysis.counts import Progress
from harness.best.write import write_best
from harness.machine.awake import keep_awake
from harness.machine.locks import machine_lock, study_lock
from harness.propose.shared import owner_of, settle_shared
from harness.propose.storage import UNREACHABLE, open_database, open_storage, reason
from harness.results.writing import compact, set_damaged_aside
from harness.rounds.repeat import resume_command
from harness.run.job import Row
from harness.study.checks import check_writable
from harness.study.manifest import settle
from harness.study.study import Study

from .coordinator import Coordinator, SharedCoordinator, Stop
from .log import close_log, open_log
from .loop import Session, Watcher


def run_study(study: Study, watcher: Watcher, stop: Stop, warn: Callable[[str], None]) -> tuple[list[Row], Progress]:
    """Measure until the budget is spent or `stop` is set; returns the study's rows and its progress. `warn` receives a line
    for each damaged file. Raises `HeadraceError`."""
    check_writable(study.folder)
    guards = study.config["guards"]
    with contextlib.ExitStack() as held:
        held.enter_context(in_one_line(study))
        held.enter_context(study_lock(study.folder))
        if guards["alone"]:
            held.enter_context(machine_lock(study.folder))
        storage = open_shared(study)  # before anything is written, so that a refusal leaves no files
        settle(study, resume_command())
        log = open_log(study.folder)
        held.callback(close_log, log)
        for line in set_damaged_aside(study.folder):
            warn(line)
            log.warning(line)
        if guards["keep_awake"]:
            held.enter_context(keep_awake(log.info))

        def note(text: str) -> None:
            log.info(text)
            watcher.note(text)

        compact(study.folder)
        session = Session(study, watcher, stop, log, note, coordinator_of(study, storage, stop, note))
        held.callback(session.close)
        try:
            session.search()
        except BaseException as e:
            session.report("failed", message=first_line(e))
            log.error("%s: %s", type(e).__name__, e)
            raise
        finally:
            with contextlib.suppress(ResultsError):  # a full disk has been reported already
                compact(study.folder)
                write_best(study.folder, session.history.table)
        session.report("finished" if session.complete and not stop.requested else "stopped")
        log.info("%s with %d rows", "finished" if session.complete else "stopped", len(session.history.own))
    return session.history.known, session.progress()


def coordinator_of(
    study: Study, shared: optuna.storages.RDBStorage | None, stop: Stop, note: Callable[[str], None]
) -> Coordinator:
    """The coordinator of a study with the database `shared`, or of a study on one machine. Raises `ResultsError`."""
    if shared is None:
        return Coordinator(open_storage(study.folder))
    stale_s = study.config["storage"]["stale_s"]
    return SharedCoordinator(shared, study.name, owner_of(study.folder), stale_s, stop, note)


def open_shared(study: Study) -> optuna.storages.RDBStorage | None:
    """The database of a shared study; None for a study on one machine. Raises `ConfigError` if it cannot be reached or does
    not accept this machine."""
    config = study.config["storage"]
    if config["url"] is None:
        return None
    storage = open_database(config["url"], config["stale_s"])
    try:
        settle_shared(storage, study)
    except UNREACHABLE as e:
        raise ConfigError(f"storage.url cannot be reached any more ({reason(e)}); run the same command again") from e
    return storage


@contextlib.contextmanager
def in_one_line(study: Study) -> Iterator[None]:
    """Turn errors of the disk and of the storage, wherever they occur, into a `ResultsError` of one line."""
    try:
        yield
    except OSError as e:
        problem = f"{e.filename or study.folder} cannot be used ({e.strerror or e})"
        raise ResultsError(f"{problem}; make room if its disk is full, then run the same command again") from e
    except UNREACHABLE as e:
        raise ResultsError(
            f"the storage of {study.name} cannot be used ({first_line(e.__cause__ or e)}); all rows are saved: make room if "
            "its disk is full, then run the same command again"
        ) from e
