"""External commands: run one with a JSON request on its standard input and return its output.

The engine adapter and the external proposer use the same runner, so both have a time limit, an interrupt, a cap on output
and errors of one line. Input and output go through temporary files, so neither side can block on a full pipe.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from engine import HeadraceError
from engine.system.strict_json import to_json
from harness import ConfigError

from .processes import end_group

POLL_S = 0.05
LONGEST_LINE = 500  # characters of a line that comes from a command


class CommandError(HeadraceError):
    """A command that cannot be started, fails, exceeds a limit or is interrupted; the message is one line."""


def split_command(key: str, command: str) -> list[str]:
    """The words of a command line, split as a shell splits them; `key` is its configuration key. Raises `ConfigError`."""
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise ConfigError(f"{key}={command} cannot be split into words ({e}); fix its quotes") from e
    if not words:
        raise ConfigError(f"{key} is empty; give a command, or null")
    return words


def run_command(
    words: Sequence[str],
    request: Mapping[str, Any],
    *,
    most_bytes: int,
    timeout_s: float | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    shared: bool = False,
    env: Mapping[str, str] | None = None,
) -> str:
    """The standard output of `words` for `request`. All processes that the command started have ended when this returns.

    With `shared`, the command keeps this process's stderr and process group: its messages reach the run's log, and it is
    killed with this process. Otherwise stderr is captured, and its last line becomes part of the error. `env`: the command's
    environment, by default that of this process. Raises `CommandError`.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(to_json(request).encode())
        stdin.seek(0)
        try:
            child = subprocess.Popen(
                words, stdin=stdin, stdout=stdout, stderr=None if shared else stderr, start_new_session=not shared, env=env
            )
        except OSError as e:
            raise CommandError(f"{words[0]} cannot be started ({e.strerror}); name a program that can") from e
        try:
            _wait(child, (stdout, stderr), most_bytes, timeout_s, interrupted)
        finally:
            end_group(child.pid, 0.0)
            child.wait()
        if child.returncode:
            line = _last_line(stderr)
            raise CommandError(f"exit status {child.returncode}{': ' if line else ''}{line}")
        stdout.seek(0)
        return stdout.read().decode(errors="replace")


def one_line(value: Any) -> str:
    """Any text of a command as one printable line of at most `LONGEST_LINE` characters."""
    text = " ".join(str(value)[: 4 * LONGEST_LINE].split())
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_LINE]


def _wait(
    child: subprocess.Popen[bytes],
    outputs: Sequence[IO[bytes]],
    most_bytes: int,
    timeout_s: float | None,
    interrupted: Callable[[], bool],
) -> None:
    """Wait until the command ends. Raises `CommandError` if it exceeds a limit or is interrupted."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended = False
    while not ended:
        try:
            child.wait(POLL_S)
            ended = True
        except subprocess.TimeoutExpired:
            if interrupted():
                raise CommandError("cancelled because the search stops") from None
            if deadline is not None and time.monotonic() > deadline:
                raise CommandError(f"no answer within {timeout_s:g} s") from None
        if max(os.fstat(f.fileno()).st_size for f in outputs) > most_bytes:
            raise CommandError(f"more than {most_bytes:,} bytes of output")


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(max(os.fstat(stderr.fileno()).st_size - 2000, 0))
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return one_line(lines[-1])[:200] if lines else ""
