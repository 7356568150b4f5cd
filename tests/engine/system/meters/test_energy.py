"""Energy: joules between two readings, by source, with counters that start again from 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.system.meters.energy import Energy, energy


def zone(root: Path, zone: str, /, **files: str) -> None:
    (root / zone).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (root / zone / file).write_text(text + "\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", name="package-0", energy_uj="5000000", max_energy_range_uj="262143328850")
    zone(tmp_path, "intel-rapl:0:0", name="core", energy_uj="4000000", max_energy_range_uj="262143328850")
    zone(tmp_path, "intel-rapl:1", name="package-1", energy_uj="1000000", max_energy_range_uj="9000000")
    zone(tmp_path, "intel-rapl:2", name="psys", energy_uj="7", max_energy_range_uj="9")
    first = energy(powercap=tmp_path)
    zone(tmp_path, "intel-rapl:0", energy_uj="7500000")
    zone(tmp_path, "intel-rapl:1", energy_uj="500000")  # started again at 9 J
    second = energy(powercap=tmp_path)
    assert first is not None and second is not None
    assert second.since(first) == pytest.approx(2.5 + 8.5)


@pytest.mark.parametrize("files", [{}, {"name": "package-0"}, {"name": "package-0", "energy_uj": "x"}, {"energy_uj": "1"}])
def test_no_readable_counter_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    zone(tmp_path, "intel-rapl:0", **files)
    assert energy(powercap=tmp_path) is None
    assert energy(powercap=tmp_path / "none") is None


def test_sources_that_only_one_reading_has_do_not_count() -> None:
    start, end = Energy({"a": 1.0}, {"a": None}), Energy({"a": 3.0, "b": 9.0}, {"a": None, "b": None})
    assert end.since(start) == 2.0
    assert Energy({"b": 1.0}, {"b": None}).since(start) is None
    assert Energy({"a": 0.5}, {"a": None}).since(start) == 0  # a counter without a known end that went back


def test_macos_reads_nanojoules_of_the_process(tmp_path: Path) -> None:
    class Billed:
        def __init__(self, value: int) -> None:
            self.value = value

        def proc_pid_rusage(self, pid: int, flavor: int, buffer: object) -> int:
            buffer._obj[2 + 31] = self.value  # type: ignore[attr-defined]
            return 0

    first, second = energy(libproc=Billed(2_000_000_000)), energy(libproc=Billed(5_500_000_000))
    assert first is not None and second is not None and second.since(first) == pytest.approx(3.5)
    assert energy(libproc=Billed(0), powercap=tmp_path) is None  # a Mac that bills nothing
