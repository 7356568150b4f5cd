"""Tests of the checks of one published measurement."""

from __future__ import annotations

from typing import Any

import pytest

from engine import HeadraceError
from harness.forecast.world.checks import measured

GOOD: dict[str, Any] = {
    "name": "a", "engine": "e", "machine": {"chip": "Apple M4", "compute": "metal", "memory_gb": 16}, "shape": "glm_5",
    "bits": 4, "tokens_per_s": 1.5, "source": "https://example.org", "kind": "issue",
}  # fmt: skip


def test_a_good_entry() -> None:
    found = measured(GOOD, "file, entry 1")
    assert (found.machine.memory_gb, found.machine.ssd_gbps, found.lossless, found.cache_gb) == (16, None, True, None)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens_per_s": 0}, "file, entry 1: tokens_per_s=0 is no positive number; correct it, or leave it out"),
        ({"cache_gb": "20"}, "cache_gb='20' is no positive number"),
        ({"hit_rate": 73}, "hit_rate=73 is not between 0 and 1; write 73 % as 0.73"),
        ({"shape": "glm_6"}, "shape='glm_6' is unknown; did you mean glm_5"),
        ({"kind": "rumour"}, "kind='rumour' is unknown; choose one of: project, issue, secondary"),
        ({"machine": {"chip": "c", "compute": "tpu"}}, "compute='tpu' is unknown"),
        ({"source": "my notes"}, "source='my notes' is no address"),
        ({"token_per_s": 1}, "has the unknown field token_per_s; did you mean tokens_per_s"),
        ({"machine": {"compute": "cpu"}}, "lacks chip; add it"),
    ],
)
def test_wrong_entries(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(HeadraceError, match=said.replace("?", r"\?")):
        measured({**GOOD, **changed}, "file, entry 1")
