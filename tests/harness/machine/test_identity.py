"""Identity of machine and software: columns of a row, and memory within a control group."""

from __future__ import annotations

import platform

import psutil

from harness.machine.identity import available_gb, host, identity
from harness.results.columns import NAMES


def test_identity_fills_columns_and_hides_the_host() -> None:
    found = identity()
    assert set(found) < set(NAMES)
    assert (found["machine"], found["python"]) == (host(), platform.python_version())
    assert len(host()) == 8 and platform.node() not in found.values()


def test_available_memory() -> None:
    assert 0 < available_gb() <= psutil.virtual_memory().total / 1e9
