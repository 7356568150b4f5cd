"""Probe: the figures of this machine for a study's model, measured in a child process and kept beside the rows.

The child measures a layer at the real shape, what a miss costs besides its bytes, and the disk, unless the study limits its
reads. It takes a few seconds, and minutes where MLX has to compile CUDA kernels first. The session's own process never
holds the weights that are measured with. The child reads a request as JSON and writes the figures as JSON.
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
from engine.model.backend import backend, compiles_first
from engine.system import atomic
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import child_environment
from harness.forecast.machine.figures import HERE_SD, device_from, machine
from harness.forecast.target import target
from harness.machine.json_command import run_command

from .fit import Features, Figures

FILE = "forecast.json"
TIMEOUT_S = 120.0
COMPILING_S = 900.0  # on CUDA: MLX compiles the kernels of new shapes first; on an H200, 120 s did not suffice twice
MOST_BYTES = 1 << 20


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


def probe(
    checkpoint: Path,
    folder: Path,
    ssd_gbps: float | None,
    interrupted: Callable[[], bool],
    tell: Callable[[str], None],
) -> Figures:
    """Measure in a child. `folder`: on the disk to measure for a model without files of some size. `tell` receives one line
    if kernels have to be compiled. Raises `HeadraceError`."""
    if line := compiles_first():
        tell(line)
    request = {"checkpoint": str(checkpoint), "folder": str(folder), "disk_gbps": ssd_gbps}
    words, timeout_s = [sys.executable, "-m", __name__], COMPILING_S if backend() == "cuda" else TIMEOUT_S
    answer = run_command(
        words, request, most_bytes=MOST_BYTES, timeout_s=timeout_s, interrupted=interrupted, env=child_environment()
    )
    return Figures(**from_json(answer.strip().splitlines()[-1]))


def measured(request: dict[str, Any]) -> Figures:
    """The child's part."""
    model = target(request["checkpoint"])
    limit = request["disk_gbps"]
    found = machine(device_from({} if limit is None else {"device.disk_gbps": str(limit)}), model, Path(request["folder"]))
    if found.probed is None or found.missing is None:
        raise HeadraceError(f"no layer of {model.name} was measured; see headrace forecast {request['checkpoint']}")
    layer, miss = found.probed, found.missing
    return Figures(
        base_ms=model.all_layers * layer.layer_ms + layer.rest_ms, base_sd=math.hypot(HERE_SD, layer.sd),
        sync_ms=miss.sync_ms, missed_ms=miss.missed_ms, missed_sd=miss.missed_sd, disk_gbps=found.disk_gbps,
    )  # fmt: skip


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
