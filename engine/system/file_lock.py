"""File locks: advisory locks (flock) that end with the process that holds them, however that ends.

Some file systems have none: network shares without a lock service, and some in user space. There the caller goes on without
a lock, and a note names the folder once.
"""

from __future__ import annotations

import fcntl
import sys
from typing import IO

from engine.errors import NO_SUCH_CALL, shown

_noted: set[str] = set()


def lock(file: IO[str] | IO[bytes] | int, place: object, *, wait: bool = False) -> bool:
    """Lock an open file; with `wait`, wait for its holder. Returns whether it is locked now: False on a file system without
    locks, which is noted once for each `place`. Raises `BlockingIOError` if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as e:
        if e.errno not in NO_SUCH_CALL:
            raise
        if (name := shown(str(place))) not in _noted:
            _noted.add(name)
            print(f"note: the file system of {name} has no locks; let one command at a time write there", file=sys.stderr)
        return False
    return True
