"""User cache: results computed once per model, in a child process, and stored in the user's cache folder.

A routing profile or the logits of a reference need a model of their own. A child process keeps that model's memory out of
the high-water mark of the run that needs the result.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.errors import HeadraceError

from . import atomic
from .shipped import PACKAGES, home

KEPT_PROMPTS = "prompts"  # folder of the kept prompts of all models (engine.prompt_cache.kept)


def cached_file(name: str) -> Path:
    """The path of the file `name` in the cache folder, whether or not it exists: XDG_CACHE_HOME, else ~/.cache, else a
    folder of this user among the temporary files."""
    return lasting_file(name) or _without_home() / "headrace" / name


def lasting_file(name: str) -> Path | None:
    """The path of the file `name` in XDG_CACHE_HOME, else in ~/.cache; None for an account without both."""
    given, own = os.environ.get("XDG_CACHE_HOME"), home()
    folder = Path(given) if given else None if own is None else own / ".cache"
    return None if folder is None else folder / "headrace" / name


@functools.cache
def _without_home() -> Path:
    """The folder for an account without a home folder, which is said once."""
    folder = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}"
    print(f"note: no home folder; results are cached in {folder}; set XDG_CACHE_HOME to keep them", file=sys.stderr)
    return folder


def compute_apart(what: str, *command: str, given: str = "") -> str:
    """Run `python -m command` with `given` as its input; returns its output. Raises `HeadraceError` with the last line of
    its errors."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        input=given, capture_output=True, encoding="utf-8", env=child_environment(), check=False,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        raise HeadraceError(f"{what} could not be computed: {reason.removeprefix('error: ')}")
    return done.stdout


def start_apart(*command: str, given: str = "") -> subprocess.Popen[bytes]:
    """Start `python -m command` with `given` as its input, in a process group of its own, for a result that it stores. Its
    output is dropped. Raises `OSError`."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given.encode())
        stdin.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", *command], stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=child_environment(), start_new_session=True,
        )  # fmt: skip


def store_in_cache(file: Path, content: bytes) -> None:
    """Write a file of the cache folder atomically; processes that compute the same result may write it at the same time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(file, content, concurrent=True)
    except OSError as e:
        raise HeadraceError(atomic.cannot_write(file, e, "set XDG_CACHE_HOME to a writable folder")) from e


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment with the packages' folder first on PYTHONPATH, and the variables in `more`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")])), **more}
