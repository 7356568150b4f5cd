"""A user's command: one JSON request on its standard input, its standard output back. An engine or a proposer.

The command runs without a shell. By default it runs in a process group that ends with the call, within limits of time and
output. A supervised command has neither limit: it runs in the worker's own process group, whose supervisor ends a run that
hangs, and its standard error goes to the run's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from engine import HeadraceError
from harness import ConfigError

MOST_BYTES = 1_000_000  # of output
POLL_S = 0.05


class CommandError(HeadraceError):
    """A command that could not be started, failed, or exceeded a limit. The text does not name the command."""


def split(key: str, command: str) -> list[str]:
    """The words of a command line. Raises `ConfigError`, which names the configuration's `key`."""
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise ConfigError(f"{key}={command} cannot be split into words ({e}); fix its quotes") from e
    if not words:
        raise ConfigError(f"{key} is empty; give a command, or leave it unset")
    return words


def call(words: Sequence[str], request: Mapping[str, Any], timeout_s: float, interrupted: Callable[[], bool]) -> str:
    """The command's output. Raises `CommandError`; all processes of its group are killed before this returns.

    interrupted: polled every 50 ms; True ends the command.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = _started(words, request, stdout=output, stderr=errors, start_new_session=True)
        deadline = time.monotonic() + timeout_s
        try:
            while child.poll() is None:
                if interrupted():
                    raise CommandError("interrupted with the search")
                if time.monotonic() > deadline:
                    raise CommandError(f"no answer within {timeout_s:g} s")
                _check_size(output, errors)
                time.sleep(POLL_S)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        _check_size(output)
        if child.returncode:
            raise CommandError(f"exit status {child.returncode}{_last_line(errors)}")
        return _text(output)


def call_supervised(words: Sequence[str], request: Mapping[str, Any]) -> str:
    """The command's output, without limits of time and size. Raises `CommandError`."""
    with tempfile.TemporaryFile() as output:
        child = _started(words, request, stdout=output)
        if child.wait():
            raise CommandError(f"exit status {child.returncode}")
        return _text(output)


def _started(words: Sequence[str], request: Mapping[str, Any], **options: Any) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as given:
        given.write(json.dumps(request, allow_nan=False).encode())
        given.seek(0)
        try:
            return subprocess.Popen(words, stdin=given, **options)
        except OSError as e:
            raise CommandError(f"cannot be started ({e.strerror}); name an executable program") from e


def _check_size(*files: IO[bytes]) -> None:
    if max(os.fstat(f.fileno()).st_size for f in files) > MOST_BYTES:
        raise CommandError(f"more than {MOST_BYTES:,} bytes of output; print the answer alone")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(max(os.fstat(errors.fileno()).st_size - 2000, 0))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:200]}" if lines else ""
