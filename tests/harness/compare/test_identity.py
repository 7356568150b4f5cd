"""Identity: what differs between two studies, what cannot be compared for it, and what explains figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from two_studies import study

from harness.compare.identity import Identity, identity
from harness.compare.sides import read_sides

SPEED, QUALITY = "decode_tok_s", "perplexity"


def between(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> Identity:
    return identity(*read_sides([study(tmp_path / "a", **first), study(tmp_path / "b", 1, **second)]))


def test_equal_studies_differ_in_nothing(tmp_path: Path) -> None:
    found = between(tmp_path, {}, {})
    assert found.differences == () and found.incomparable == {} and found.causes == ()
    assert found.same == ("model", "texts", "machine", "versions", "protocol", "search") and found.same_rounding


@pytest.mark.parametrize(
    ("other", "difference", "incomparable", "cause"),
    [
        ({"eval_fingerprint": "c" * 16}, "eval_fingerprint bbbb", {QUALITY}, "evaluation texts differ"),
        ({"model_fingerprint": "2-" + "d" * 16}, "model_fingerprint 2-aaaa", {QUALITY}, "models differ"),
        ({"timed_tokens": 64}, "timed_tokens 128 -> 64", {SPEED}, None),
        ({"state": "steady"}, "state prefilled -> steady", {SPEED}, None),
        ({"cpu": "M4 Max", "cores": 16}, "cpu M2 Max -> M4 Max", set(), "machines differ in kind"),
        ({"machine": "two"}, "machine one -> two", set(), "of one kind, but not the same"),
        ({"mlx": "0.33.0", "headrace_version": None}, "headrace_version 0.3.0 -> unknown", set(), "versions differ"),
        ({"device_profile": "m1_8gb"}, "device_profile its own -> m1_8gb", set(), None),
        ({"ssd_gbps": 0.3}, "ssd_gbps unlimited -> 0.3", set(), "two disks"),
        ({"model": "renamed"}, "model m -> renamed", set(), None),
        ({"space": "t", "config": {"identity": {"space": {"search_space": {"cache_gb": [0.005, 0.08]}, "knobs": {}}}}},
         "search_space.cache_gb [0.005, 0.04] -> [0.005, 0.08]", set(), None),
    ],
)  # fmt: skip
def test_a_difference_and_what_follows(
    tmp_path: Path, other: dict[str, Any], difference: str, incomparable: set[str], cause: str | None
) -> None:
    found = between(tmp_path, {}, other)
    assert any(str(d).startswith(difference) for d in found.differences), found.differences
    assert {name for name in found.incomparable if name in (SPEED, QUALITY)} == incomparable
    assert cause is None or any(cause in line for line in found.causes), found.causes
    assert found.same_rounding == (not {"cpu", "mlx"} & set(other))
