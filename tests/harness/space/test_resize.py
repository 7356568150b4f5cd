"""Resizing a space: the new one has the asked extent, and conditions are resolved again."""

from __future__ import annotations

from typing import Any

import pytest

from harness import ConfigError
from harness.space.parse import space_from_config
from harness.space.resize import drop, fix, narrow, widen

CHAIN: dict[str, Any] = {
    "prefetch_depth": {"type": "int", "low": 1, "high": 4, "when": {"prefetch": "stale_gate"}},
    "cache_gb": {"type": "float", "low": 1, "high": 9, "step": 0.25},
    "prefetch": {"type": "choice", "values": ["off", "stale_gate"], "when": {"sync_window": 1}},
    "sync_window": {"type": "ordinal", "values": [1, 4, "all"]},
    "expert_bits": {"type": "ordinal", "values": [3, 4, None]},
    "cold_bits": {"type": "ordinal", "values": [2, None]},
    "hot_share": {"type": "float", "low": 0.1, "high": 0.9, "when": {"cold_bits": [2]}},
}


def test_widening_keeps_the_old_range_and_its_grid() -> None:
    base = space_from_config(CHAIN | {"read_threads": [2, 8]}, {})
    assert widen(base, "cache_gb", high=17.1).entry("cache_gb").span == (1, 17)
    assert widen(base, "cache_gb", low=0.4).entry("cache_gb").span == (0.5, 9)
    assert widen(base, "read_threads", low=1, high=9).entry("read_threads").span == (1, 9)
    wide = widen(base, "sync_window", values=[1, 4, 15, "all"])
    assert wide.entry("sync_window").values == (1, 4, 15, 0) and wide.entry("prefetch").when == (("sync_window", (1,)),)
    for change, message in (
        (lambda: widen(base, "cache_gb", high=9.2), r"cache_gb: \[1, 9\] does not widen \[1, 9\]; keep all its values"),
        (lambda: widen(base, "cache_gb", low=2, high=12), "does not widen"),
        (lambda: widen(base, "cache_gb", values=[1]), "is a range, not a list of values; widen it with low and high"),
        (lambda: widen(base, "sync_window", values=[4, "all", 15]), "does not widen"),
        (lambda: widen(base, "sync_window", high=15), r"a list of values, not a range; widen it with some of: \[1, 4, 0\]"),
        (lambda: widen(base, "read_threads", high=300), "read_threads=300 is out of range"),
        (lambda: widen(base, "read_threads", high=8.5), "is not a whole number"),
    ):
        with pytest.raises(ConfigError, match=message):
            change()


def test_narrowing_fixing_and_dropping() -> None:
    base = space_from_config(CHAIN, {"read_threads": 4})
    assert narrow(base, "cache_gb", low=2.1).entry("cache_gb").ends() == (2.25, 9)
    under = {"evict_half_life": {"type": "float", "low": 1, "high": 9, "when": {"expert_bits": [3, 4]}}}
    plain = narrow(space_from_config(CHAIN | under, {}), "expert_bits", values=[4, None])
    assert plain.entry("evict_half_life").when == (("expert_bits", (4,)),)
    assert "prefetch_depth" not in fix(base, "prefetch", "off").as_dict()
    held = fix(base, "hot_share", 0.3)
    assert (
        held.values({"cache_gb": 1.0, "expert_bits": 1, "cold_bits": 0, "sync_window": 1, "hot_share": 0})["hot_share"]
        == 0.3
    )
    assert "hot_share" not in held.values({"cache_gb": 1.0, "expert_bits": 1, "cold_bits": 1, "sync_window": 1})
    assert drop(base, "cold_bits").fixed == {"cold_bits": None, "read_threads": 4}
    assert "hot_share" not in drop(base, "cold_bits").as_dict()
    for change, message in (
        (lambda: narrow(base, "cache_gb", low=0.5), r"cache_gb: \[0.5, 9\] does not narrow \[1, 9\]; keep a part of them"),
        (lambda: narrow(base, "cache_gb", low=9), "leaves one value; fix it instead"),
        (lambda: narrow(base, "sync_window", values=["all"]), "leaves one value; fix it instead"),
        (lambda: narrow(base, "prefetch", values=["of"]), "prefetch=of is outside"),
        (lambda: fix(base, "cold_bits", 7), "cold_bits=7 is not a width"),
        (lambda: fix(base, "cachegb", 7), "did you mean cache_gb"),
        (lambda: drop(base, "cache_gb"), "nothing is streamed"),
    ):
        with pytest.raises(ConfigError, match=message):
            change()
