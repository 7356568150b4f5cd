"""Sleep inhibition: keep the machine awake while a search runs.

macOS: `caffeinate`, which watches this process. Linux: `systemd-inhibit` around a `cat` that reads a pipe of this process.
Either ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator

INHIBIT_S = 5.0  # time limit for an answer of systemd-inhibit


@contextlib.contextmanager
def keep_awake(note: Callable[[str], None], platform: str = sys.platform) -> Iterator[None]:
    """Prevent sleep inside the block. `note` receives the reason where this is not possible."""
    holder, problem = _caffeinate() if platform == "darwin" else _inhibit()
    if problem:
        note(f"this machine may go to sleep: {problem}")
    try:
        yield
    finally:
        if holder:
            _end(holder)


def _end(holder: subprocess.Popen[bytes]) -> None:
    for pipe in filter(None, (holder.stdin, holder.stdout, holder.stderr)):
        pipe.close()
    if holder.stdin is None:  # caffeinate reads no input; systemd-inhibit ends with its input
        holder.terminate()
    try:
        holder.wait(INHIBIT_S)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()


def _caffeinate() -> tuple[subprocess.Popen[bytes] | None, str | None]:
    command = ["caffeinate", "-ims", "-w", str(os.getpid())]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True), None
    except OSError as e:
        return None, f"caffeinate cannot be run ({e.strerror})"


def _inhibit() -> tuple[subprocess.Popen[bytes] | None, str | None]:
    command = ["systemd-inhibit", "--what=sleep:idle", "--who=headrace", "--why=a search runs", "--mode=block"]
    command += ["sh", "-c", "echo held; exec cat >/dev/null"]  # the line confirms that the inhibitor is active
    pipe = subprocess.PIPE
    try:
        holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as e:
        return None, f"systemd-inhibit cannot be run ({e.strerror})"
    assert holder.stdin and holder.stdout and holder.stderr
    ready = select.select([holder.stdout], [], [], INHIBIT_S)[0]
    if ready and holder.stdout.readline():
        return holder, None
    holder.kill()
    _, errors = holder.communicate()
    lines = errors.decode(errors="replace").strip().splitlines()
    return None, f"systemd-inhibit: {lines[-1] if lines else f'no answer within {INHIBIT_S:g} s'}"
