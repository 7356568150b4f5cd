"""Identity of machine and software: columns of a row, and memory within a control group."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import pytest

from harness.machine.identity import available_gb, host, identity
from harness.results.columns import NAMES


def test_identity_fills_columns_and_hides_the_host() -> None:
    found = identity()
    assert set(found) < set(NAMES)
    assert (found["machine"], found["python"]) == (host(), platform.python_version())
    assert len(host()) == 8 and platform.node() not in found.values()


def test_available_memory_within_a_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    free = available_gb(tmp_path)
    assert free == pytest.approx(psutil.virtual_memory().available / 1e9, rel=0.1)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("700000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 100000000\ninactive_file 50000000\n")
    assert available_gb(tmp_path) == pytest.approx(0.45)
