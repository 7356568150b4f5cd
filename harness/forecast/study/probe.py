"""Probe: the figures of this machine for a study's model, measured in a child process and kept beside the rows.

The child measures a layer at the real shape, the host's wait for a router's choice, and the disk, unless the study limits
its reads. It takes a few seconds. The session's own process never holds the weights that are measured with. The child reads
a request as JSON and writes the figures as JSON.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import __version__
from engine.errors import HeadraceError
from engine.system import atomic
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import child_environment
from harness.forecast.machine.figures import HERE_SD, device_from, machine
from harness.forecast.speed import Work
from harness.forecast.target import target
from harness.machine.json_command import run_command

from .fit import Features

FILE = "forecast.json"
TIMEOUT_S = 60.0
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Figures:
    """Of a token with everything in memory, ms, and its relative sd; of the wait for a layer's choice, ms; of the disk."""

    base_ms: float
    sync_ms: float
    disk_gbps: float
    base_sd: float = HERE_SD


@dataclass
class Kept:
    """The content of the file: figures, and the features of the settings that were replayed, by their keys."""

    figures: Figures | None  # None: the probe failed
    known: dict[str, Features] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the file, if there are figures; a full disk does not end a study for it."""
        if self.figures is None:
            return
        content = {
            "headrace_version": __version__, "figures": dataclasses.asdict(self.figures),
            "settings": {name: dataclasses.astuple(features) for name, features in self.known.items()},
        }  # fmt: skip
        try:
            atomic.write_json(folder / FILE, content, durable=False)
        except OSError:
            return


def kept(folder: Path) -> Kept | None:
    """What an earlier session of the same version left; None if there is nothing or it is damaged."""
    try:
        content = from_json((folder / FILE).read_text(encoding="utf-8"))
        if content["headrace_version"] != __version__:
            return None
        known = {str(name): Features(*map(float, values)) for name, values in content["settings"].items()}
        return Kept(Figures(**{name: float(value) for name, value in content["figures"].items()}), known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def probe(checkpoint: Path, folder: Path, ssd_gbps: float | None, interrupted: Callable[[], bool]) -> Figures:
    """Measure in a child. `folder`: on the disk to measure for a model without files of some size. Raises
    `HeadraceError`."""
    request = {"checkpoint": str(checkpoint), "folder": str(folder), "disk_gbps": ssd_gbps}
    words = [sys.executable, "-m", __name__]
    answer = run_command(
        words, request, most_bytes=MOST_BYTES, timeout_s=TIMEOUT_S, interrupted=interrupted, env=child_environment()
    )
    return Figures(**from_json(answer.strip().splitlines()[-1]))


def measured(request: dict[str, Any]) -> Figures:
    """The child's part."""
    model = target(request["checkpoint"])
    limit = request["disk_gbps"]
    found = machine(device_from({} if limit is None else {"device.disk_gbps": str(limit)}), model, Path(request["folder"]))
    if found.probed is None:
        raise HeadraceError(f"no layer of {model.name} was measured; see headrace forecast {request['checkpoint']}")
    rates = found.rates(Work(1.0, (1.0,), model.layers, model.all_layers))
    base = model.all_layers * found.probed.layer_ms + found.probed.rest_ms
    return Figures(base, rates.sync_ms, found.disk_gbps, math.hypot(HERE_SD, found.probed.sd))


def main() -> int:
    """Answer one request; returns the exit status."""
    try:
        print(to_json(dataclasses.asdict(measured(from_json(sys.stdin.read())))))
    except HeadraceError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
