"""Probes of this machine with few rounds: the tests look at what is measured, not at how precisely."""

from __future__ import annotations

import pytest

from harness.forecast.machine import layer, miss


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (layer, miss):
        monkeypatch.setattr(module, "ROUNDS", 5)
