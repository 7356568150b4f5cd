"""Checks of a soak test: which status a row must have, and which processes are left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from engine import Knobs
from harness.bench.soak import faulty
from harness.bench.soak.checks import STARTS_SPOIL, as_injected, fate, leftovers


def row(fault: str | None, status: str, reason: str = "") -> dict[str, Any]:
    some = (Knobs(cache_gb=0.01, evict_half_life=1 + i / 7, read_threads=4) for i in range(3000))
    knobs = next(k for k in some if faulty.fault(k) == fault)
    return {**knobs.as_dict(), "status": status, "status_reason": reason}


def test_a_row_has_the_status_of_its_fault() -> None:
    assert fate(row("hang", "hang")) == "hang" and fate(row(None, "ok")) == "none"
    assert as_injected(row("hang", "hang")) and as_injected(row(None, "stopped")) and as_injected(row("burst", "oom"))
    assert not as_injected(row("hang", "ok")) and not as_injected(row(None, "crash", "exit status 1"))
    assert as_injected(row(None, "crash", f"{STARTS_SPOIL} it"))
    small = {**row(None, "infeasible"), "cache_gb": 0.001}
    assert as_injected(small) and not as_injected({**small, "cache_gb": 0.01})


def test_a_process_that_names_the_folder_is_found(tmp_path: Path) -> None:
    assert leftovers(tmp_path) == []
    words = [sys.executable, "-S", "-c", "input()", str(tmp_path / "disk")]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        assert [line.split()[0] for line in leftovers(tmp_path)] == [str(process.pid)]
        process.kill()
