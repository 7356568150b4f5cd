"""Locks of a search: one search per study folder, and one search per machine.

Both are advisory file locks (flock), which end with the process that holds them, however that ends. The file names the
holder for the message of a second search.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engine.system.file_lock import lock
from engine.system.user_cache import cached_file
from harness import ResultsError

from .identity import host


def study_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a study's folder. Raises `ResultsError` if another search holds it."""
    refusal = f"{folder} is in use by another search ({{holder}}); wait for it, or start another study with study.name=OTHER"
    return _held(folder / ".lock", f"process {os.getpid()}", refusal)


def machine_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold this user's lock of the machine, whatever the study. Raises `ResultsError` if another search holds it."""
    refusal = (
        "another search runs on this machine ({holder}), and two at once distort each other's figures; wait for it, or "
        "set guards.alone=false"
    )
    return _held(_machine_file(), f"process {os.getpid()}, {folder}", refusal)


@contextlib.contextmanager
def _held(path: Path, owner: str, refusal: str) -> Iterator[None]:
    """Hold a lock file that contains `owner`; `refusal` is the message of the error, with {holder}."""
    with open(path, "a+") as f:
        try:
            lock(f, path.parent)
        except BlockingIOError as e:
            f.seek(0)
            raise ResultsError(refusal.replace("{holder}", f.read().strip() or "process unknown")) from e
        f.truncate(0)
        f.write(owner)
        f.flush()
        yield


def _machine_file() -> Path:
    """A file in the user's cache folder, else in the folder for temporary files. Its name has the host's fingerprint,
    because several machines may share a home folder."""
    name = f"search-{host()}.lock"
    path = cached_file(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path
    except OSError:
        return Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{name}"
