"""Lock of a study's folder: one search at a time writes to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from harness import ResultsError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when this process ends. Raises `ResultsError` if it is taken."""
    with open(folder / ".lock", "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            f.seek(0)
            raise ResultsError(
                f"{folder} is in use by another search (process {f.read().strip() or 'unknown'}); wait for it, "
                "or start another study with study.name=OTHER"
            ) from e
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield
