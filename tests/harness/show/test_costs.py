"""Costs of a report: energy, bytes written, and direct reads that a cache served."""

from __future__ import annotations

from synthetic import trials

from harness.show.costs import costs

NONE = {"energy_j_per_1k_tokens": None, "disk_bytes_written": None, "run_swap_out_bytes": None, "read_source": None}


def test_each_cost_has_a_line() -> None:
    df = trials((1, 1, 1), (2, 2, 2), (3, 3, 3), trial=[4, 5, 5]).assign(
        energy_j_per_1k_tokens=[210.0, 100.0, 200.0], disk_bytes_written=[10**9, 5 * 10**8, None],
        run_swap_out_bytes=[0, 2 * 10**8, 10**8], io_mode=["direct", "direct", "buffered"],
        read_source=["disk", "both", "cache"],
    )  # fmt: skip
    assert costs(df) == [
        "energy while decoding: 150 J per 1,000 tokens (trial 5) to 210 J (trial 4)",
        "written to the disk: 1.5 GB by the runs, 0.3 GB swapped out by the whole machine (2 runs)",
        "io_mode=direct, but not from the disk by the system's count: trial 5; their speed is that of a cache, or this disk "
        "is not counted",
    ]


def test_what_the_system_does_not_report_has_no_line() -> None:
    assert costs(trials((1, 1, 1), (2, 2, 2)).assign(io_mode="direct", **NONE)) == []
