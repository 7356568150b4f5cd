"""Device: profiles, the figures of this machine, and the limits of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.model import backend
from harness import ConfigError
from harness.machine import device
from harness.machine.device import Device, foreign_name, limits_of, profile, this_machine
from harness.schema import PROFILES, profiles

MAC = Device("auto", "Apple M2 Max", "metal", 12, memory_gb=103.1, gpu_memory_gb=77.3)
CHIPS = ("m1", "m2", "m3", "m4", "m5")


def test_every_chip_of_apples_has_a_profile_with_a_source() -> None:
    known = profiles()
    assert len(known) > 40 and list(known) == [entry["name"] for entry in known.values()]
    for chip in (*CHIPS, *(f"{chip}{kind}" for chip in CHIPS for kind in ("pro", "max")), "m1ultra", "m2ultra", "m3ultra"):
        found = [profile(name) for name in known if name.startswith(f"{chip}_")]
        assert found, chip
        assert all(one.memory_bandwidth_gbps and one.gpu_cores and one.source for one in found)
    assert {profile(n).memory_gb for n in ("iphone16pro_8gb", "iphone17pro_12gb")} == {8.59, 12.88}


def test_a_process_may_use_less_than_the_memory() -> None:
    """Metal's working sets that were reported: 5461.3, 10922.7 and 73728 MiB."""
    for name, mib in (("m1_8gb", 5461.3), ("m1pro_16gb", 10922.7), ("m2max_96gb", 73728)):
        assert profile(name).limit_gb == pytest.approx(mib * 2**20 / 1e9, rel=2e-3)
    assert all(entry["gpu_memory_gb"] < entry["memory_gb"] for entry in profiles().values())


def test_the_rules_of_the_working_set_cover_all_sizes() -> None:
    content = yaml.safe_load(Path(PROFILES).read_text())
    sold = [size for chip in content["chips"].values() for m in chip["machines"] for size in m["memory"]]
    assert max(sold) <= content["working_set"][-1]["most_gb"]


def test_an_unknown_profile_and_a_missing_figure_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"device=m2max_96 is unknown; did you mean m2max_96gb"):
        profile("m2max_96")
    with pytest.raises(
        ConfigError, match=r"device=iphone16pro_8gb has no memory_bandwidth_gbps: no source gives it; set dev"
    ):
        profile("iphone16pro_8gb").need("memory_bandwidth_gbps")
    with pytest.raises(ConfigError, match=r"device=odd has no memory_gb"):
        _ = Device("odd").limit_gb
    assert profile("m1max_64gb").need("disk_gbps") == 7.4


@pytest.mark.parametrize(
    ("config", "limit_gb", "foreign"),
    [
        ({"name": "auto"}, 77.3, None),
        ({"name": "auto", "memory_gb": 40.0}, 36.0, None),
        ({"name": "auto", "gpu_memory_gb": 90.0}, 90.0, None),
        ({"name": "auto", "usable_share": 0.5}, 51.55, None),
        ({"name": "mine", "memory_gb": 64.0, "usable_share": 0.5}, 32.0, "mine"),
        ({"name": "mine", "memory_gb": 96.0}, 86.4, None),
        ({"name": "linux_2core", "backend": "cpu", "cores": 2}, 77.3, "linux_2core"),
        (dict(profiles()["m2max_96gb"]), 77.31, None),
        (dict(profiles()["m3max_96gb"]), 77.31, "m3max_96gb"),
        (dict(profiles()["m2max_64gb"]), 51.54, "m2max_64gb"),
    ],
)
def test_limits_are_the_machines_unless_given(config: dict[str, Any], limit_gb: float, foreign: str | None) -> None:
    assert limits_of(config, MAC).limit_gb == pytest.approx(limit_gb, rel=1e-3)
    assert foreign_name(config, MAC) == foreign


def test_this_machine_is_no_other() -> None:
    here = this_machine(mlx=False)
    assert here.name == "auto" and here.cores and here.memory_gb and here.chip and here.is_here(here)
    assert here.backend is None and here.gpu_memory_gb is None
    assert foreign_name(dict(profiles()["m3ultra_512gb"]), here) == "m3ultra_512gb"


def test_a_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(MAC) == "Apple M2 Max: metal, 12 cores, 103 GB of memory, 77.3 GB for the GPU"
    monkeypatch.setattr(backend, "backend", lambda: "cuda")
    monkeypatch.setattr(backend, "gpu_memory_bytes", lambda: 80 * 10**9)
    monkeypatch.setattr(backend, "device_name", lambda: "NVIDIA H200")
    found = device.this_machine.__wrapped__()
    assert (found.chip, found.gpu_memory_gb) == ("NVIDIA H200", 72)
