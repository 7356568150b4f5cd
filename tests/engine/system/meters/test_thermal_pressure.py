"""Thermal pressure by notify(3): levels of the header, and None wherever a call fails."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from engine.system.meters.thermal_pressure import thermal_pressure


class FakeNotify:
    """notify(3) with one key. `fails` names a call that returns an error."""

    def __init__(self, level: int, fails: str = "") -> None:
        self.level, self.fails, self.open = level, fails, set[int]()

    def notify_register_check(self, key: bytes, token: Any) -> int:
        if self.fails == "register" or key != b"com.apple.system.thermalpressurelevel":
            return 1000000
        token._obj.value = 7
        self.open.add(7)
        return 0

    def notify_get_state(self, token: Any, state: Any) -> int:
        assert token.value in self.open
        if self.fails == "state":
            return 1000000
        state._obj.value = self.level
        return 0

    def notify_cancel(self, token: Any) -> int:
        self.open.remove(token.value)
        return 0


@pytest.mark.parametrize(
    ("level", "name"), [(0, "nominal"), (1, "moderate"), (2, "heavy"), (3, "trapping"), (4, "sleeping"), (5, None)]
)
def test_levels(level: int, name: str | None) -> None:
    libc = FakeNotify(level)
    assert thermal_pressure(libc) == name
    assert not libc.open  # the registration was given back


@pytest.mark.parametrize("fails", ["register", "state"])
def test_a_failing_call_gives_no_level(fails: str) -> None:
    libc = FakeNotify(1, fails)
    assert thermal_pressure(libc) is None and not libc.open


def test_a_system_without_notify_has_no_level() -> None:
    assert thermal_pressure(object()) is None
    if sys.platform != "darwin":
        assert thermal_pressure() is None
