"""Differences: one line for each fact of machine, versions and model that is not so here, none on the same machine."""

from __future__ import annotations

from dataclasses import replace

from engine.checkpoint.checkpoint import Checkpoint
from engine.setting.differences import differences, machine_here, versions_here
from engine.setting.setting_file import Setting
from engine.system.shipped import KIMI_MINI


def test_each_difference_is_one_line() -> None:
    fingerprint = Checkpoint.open(KIMI_MINI).fingerprint
    model = {"path": "x", "name": "kimi_mini", "fingerprint": fingerprint}
    same = Setting("fastest", {}, model=model, machine=machine_here(), versions=versions_here())
    assert differences(same, KIMI_MINI) == []
    close = machine_here()["memory_gb"] * 1.01
    other = replace(
        same, machine={"device": "Apple M2", "memory_gb": close, "cores": 12}, versions={"mlx": "0.1", "unknown": "3"},
        model={**model, "fingerprint": "2-0123456789abcdef"},
    )  # fmt: skip
    lines = differences(other, KIMI_MINI)
    assert len(lines) == 3 and all("\n" not in line for line in lines)
    assert lines[0].startswith("machine: device was Apple M2 in the study and is ")
    assert lines[1] == f"version: mlx was 0.1 in the study and is {versions_here()['mlx']} here"
    assert lines[2].startswith(
        f"model: it was kimi_mini (2-0123456789abcdef) in the study, and {KIMI_MINI} is another model"
    )


def test_without_facts_nothing_differs() -> None:
    assert differences(Setting("fastest", {}), KIMI_MINI) == []
