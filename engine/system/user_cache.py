"""Kept: what is computed once, in a process of its own, and stays in the user's cache folder.

A routing profile or a reference's logits take a model of their own. A child process leaves no trace of it in the memory
high-water mark of the run that asks for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine.errors import HeadraceError


def kept_file(name: str) -> Path:
    """Where the cache folder has a file of this name, if it is there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / name


def compute_apart(what: str, *command: str, given: str = "") -> None:
    """Run `python -m command` with `given` as its input. Raises `HeadraceError` with its last line if it fails."""
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(
        [sys.executable, "-m", *command], input=given, capture_output=True, encoding="utf-8", env=env, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        raise HeadraceError(f"{what} could not be taken: {reason.removeprefix('error: ')}")


def keep(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as e:
        raise HeadraceError(f"{file.parent} is not writable ({e.strerror}); set XDG_CACHE_HOME to a folder that is") from e
