"""Identity of a measurement: the columns that name the machine and the software of a row."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from engine.knobs import GB
from engine.system.memory import available_bytes, memory_bytes
from engine.system.shipped import ROOT


def memory_gb() -> float:
    """Memory of this machine, or the limit of its control group."""
    return memory_bytes() / GB


def available_gb() -> float:
    """Available memory including file caches, within the limits of the control groups."""
    return available_bytes() / GB


@functools.cache
def boot_id() -> str | None:
    """An id that changes with each start of the machine (Linux, macOS); None on other systems."""
    try:
        if sys.platform == "darwin":
            ask = ["sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() or None
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def host() -> str:
    """Fingerprint of this machine's name, 8 hexadecimal digits."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@functools.cache
def identity() -> dict[str, Any]:
    """The columns machine .. os and commit .. optuna. The host's name is hashed because rows are meant to be
    shared."""
    return {
        "machine": host(),
        "cpu": _cpu(),
        "cores": psutil.cpu_count() or 1,
        "machine_memory_gb": round(memory_gb(), 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changes := _git("status", "--porcelain", "--untracked-files=no")) is None else bool(changes),
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in ("mlx", "mlx-lm", "optuna")},
    }


def _cpu() -> str:
    if platform.system() == "Darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        ).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*command: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
