"""Differences: what a setting's machine, versions and model have that is not so here, one line each.

None of them prevents a run. A setting that cannot run here is refused by the loader of the model.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from pathlib import Path
from typing import Any

from engine import __version__
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.fingerprint import another
from engine.knobs import GB
from engine.system.memory import memory_bytes

from .setting_file import Setting

SAME_MEMORY = 0.02  # relative difference between two readings of one machine's memory


def machine_here() -> dict[str, Any]:
    """The facts of this machine that a setting file has, by its names."""
    from engine.model.backend import backend, device_name

    return {
        "device": device_name(), "backend": backend(), "memory_gb": round(memory_bytes() / GB, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }  # fmt: skip


def versions_here() -> dict[str, str]:
    """The versions here, by the names of a setting file."""
    found = {"headrace": __version__, "python": platform.python_version()}
    for name in ("mlx", "mlx-lm"):
        try:
            found[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(setting: Setting, model: Path) -> list[str]:
    """Lines on what differs between where the setting was measured and here, with the checkpoint `model`.

    Raises `CheckpointError` if that checkpoint cannot be opened.
    """
    lines = []
    here = machine_here()
    for name, then in setting.machine.items():
        if name in here and not _same(then, here[name]):
            unit = " GB" if name == "memory_gb" else ""
            lines.append(f"machine: {name} was {then}{unit} in the study and is {here[name]}{unit} here")
    now = versions_here()
    lines += [
        f"version: {name} was {then} in the study and is {now[name]} here"
        for name, then in setting.versions.items()
        if name in now and str(then) != now[name]
    ]
    if wanted := setting.model.get("fingerprint"):
        source = Checkpoint.open(model)
        if source.fingerprint != wanted:
            named, what = setting.model.get("name") or "another model", another(wanted, source.fingerprint)
            lines.append(
                f"model: it was {named} ({wanted}) in the study, and {model} is {what} ({source.fingerprint}); the figures "
                "do not hold here"
            )
    return lines


def _same(then: Any, now: Any) -> bool:
    if isinstance(then, int | float) and isinstance(now, int | float):
        return math.isclose(then, now, rel_tol=SAME_MEMORY)
    return str(then) == str(now)
