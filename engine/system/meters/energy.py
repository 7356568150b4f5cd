"""Energy: a counter of the joules spent so far, to be read before and after the work.

macOS: `ri_billed_energy` of this process. <sys/resource.h> gives no unit; it is read as nanojoules, as is common, and has
not run on a Mac. Linux: the processor packages' RAPL counters under /sys/class/powercap, of the whole machine; since 2020
only root may read them by default. Graphics cards are in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rusage import rusage

POWERCAP = Path("/sys/class/powercap")
MACOS_UNIT_J, RAPL_UNIT_J = 1e-9, 1e-6


@dataclass(frozen=True)
class Energy:
    """Counters at one moment, J by source, and where each starts again from 0 (None: it never does)."""

    joules: dict[str, float]
    wraps_at: dict[str, float | None]

    def since(self, start: Energy) -> float | None:
        """Joules since `start`; None without a source that both have. One start from 0 is seen, a second one is not: a
        package of 100 W takes about 45 minutes for one."""
        common = [name for name in self.joules if name in start.joules]
        return sum(self._spent(name, start) for name in common) if common else None

    def _spent(self, name: str, start: Energy) -> float:
        spent = self.joules[name] - start.joules[name]
        return spent if spent >= 0 else spent + (self.wraps_at[name] or -spent)


def energy(*, libproc: Any = None, powercap: Path = POWERCAP) -> Energy | None:
    """The energy counters of this machine; None if it has none or this user may not read them.

    Costs microseconds on macOS and reads one small file per package on Linux.
    """
    billed = rusage("billed_energy", libproc)
    if billed is not None:
        return Energy({"process": billed * MACOS_UNIT_J}, {"process": None}) if billed else None  # 0: it does not count
    joules: dict[str, float] = {}
    wraps_at: dict[str, float | None] = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's counters have the same name
        if zone.name.count(":") != 1 or not (_text(zone / "name") or "").startswith("package"):
            continue  # a part of a package, or the whole system on some laptops
        spent, most = _text(zone / "energy_uj"), _text(zone / "max_energy_range_uj")
        if spent is not None and spent.isdigit():
            joules[zone.name] = int(spent) * RAPL_UNIT_J
            wraps_at[zone.name] = int(most) * RAPL_UNIT_J if most is not None and most.isdigit() else None
    return Energy(joules, wraps_at) if joules else None


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return None
