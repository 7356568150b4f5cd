"""PostgreSQL for a benchmark or a test: the system's own binaries on a temporary folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNPRIVILEGED = 65534  # user number of the account without rights, on Linux


def binaries() -> Path | None:
    """The folder with initdb and postgres; None if PostgreSQL is not installed."""
    found = [Path(p).resolve().parent for p in [shutil.which("initdb")] if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in found if (f / "postgres").exists() and (f / "initdb").exists()), None)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database; the server ends with the block.

    PostgreSQL does not run as root, so root starts it under the account of the lowest privilege.
    """
    where = binaries()
    assert where is not None
    as_root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="headrace-pg-"))
    account = pwd.getpwuid(UNPRIVILEGED) if as_root else None
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    who: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    data = folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    make: list[str | Path] = [where / "initdb", "-D", data, "-U", "headrace", "-A", "trust", "-N"]
    subprocess.run(make, check=True, cwd=folder, **quiet, **who)
    options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(folder), "-p", str(port)]
    server = subprocess.Popen([where / "postgres", "-D", data, *options], cwd=folder, **quiet, **who)
    try:
        for _ in range(200):
            ready = subprocess.run([where / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], **quiet, check=False)
            if ready.returncode == 0:
                break
            server.poll()
            subprocess.run(["sleep", "0.05"], check=True)
        subprocess.run(
            [where / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "headrace", "headrace"], check=True, **quiet
        )
        yield f"postgresql://headrace@127.0.0.1:{port}/headrace"
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown: it ends open connections
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
