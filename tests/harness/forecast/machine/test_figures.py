"""Tests of the figures of a machine: a profile's, and those measured here."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import ConfigError
from harness.forecast.machine.figures import device_from, machine
from harness.forecast.speed import Work
from harness.forecast.target import target
from tests.harness.forecast.test_target import KIMI_MINI

WORK = Work(0.01, (0.001, 0.002), (3.0, 4.0), 6, 7)


def test_a_profile_has_published_figures_and_fitted_shares() -> None:
    found = machine(device_from({"device": "m2max_96gb"}), target("deepseek_v4_flash"), Path())
    rates = found.rates(WORK)
    assert found.probed is None and not found.widened and rates.disk_gbps < 5.3 and rates.gbps < 400
    assert rates.inadequacy_sd > rates.disk_sd > 0 and "34 published measurements" in " ".join(found.lines)


def test_this_machine_is_measured(tmp_path: Path) -> None:
    model = target(str(KIMI_MINI))
    found = machine(device_from({"device.disk_gbps": "0.1"}), model, tmp_path)
    rates = found.rates(WORK)
    assert found.probed is not None and rates.disk_gbps == 0.1 and rates.disk_sd == 0 and rates.layer_ms > 0
    assert found.missing is not None and (rates.sync_ms, rates.missed_ms) == (found.missing.sync_ms, found.missing.missed_ms)
    assert len(found.lines) == 3


def test_a_figure_must_be_a_number_and_known() -> None:
    with pytest.raises(ConfigError, match=r"device.cores=many is no positive number; give one, such as device.cores=5.3"):
        device_from({"device.cores": "many"})
    with pytest.raises(ConfigError, match="did you mean disk_gbps"):
        device_from({"device.disk_gbs": "1"})
