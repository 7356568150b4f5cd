"""Titles: model, device and machine in one line."""

from __future__ import annotations

import pytest
from synthetic import trials

from harness.study.titles import short, title


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {"device": ["Intel(R) Xeon(R) CPU @ 2.20GHz (2 cores)"], "backend": ["cpu"], "ssd_gbps": [0.1]},
            "m on Intel Xeon @ 2.20GHz (2 cores, cpu), reads limited to 0.1 GB/s",
        ),
        ({"device": ["NVIDIA H100 80GB HBM3", None], "backend": ["cuda", None]}, "m on NVIDIA H100 80GB HBM3 (cuda)"),
        ({"device": ["linux_2core"], "backend": [None]}, "m on linux_2core"),  # rows of older versions
        ({"device": [None], "backend": [None]}, "m on a machine with AMD EPYC 7B13 (2 cores)"),
    ],
)
def test_a_title_names_model_device_and_read_limit(facts: dict, expected: str) -> None:
    row = {"model": ["m"], "cpu": ["AMD EPYC 7B13"], "cores": [2], "ssd_gbps": [None]}
    assert title(row | facts) == expected
    df = trials((1, 1, 3)).assign(**{k: v[0] for k, v in (row | facts).items()})
    assert title(df) == expected
    assert short("AMD Ryzen 9 7950X 16-Core Processor") == "AMD Ryzen 9 7950X"
