"""Room: the range of the cache with what other knobs take of it, and values that are left out because they take too much."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from engine import Knobs
from harness.space.room import Room

SPACE = {
    "sync_window": {"type": "ordinal", "values": [1, 4, "all"]},
    "prefetch": {"type": "choice", "values": ["off", "stale_gate"], "when": {"sync_window": 1}},
    "prefetch_depth": {"type": "int", "low": 1, "high": 4, "when": {"prefetch": "stale_gate"}},
    "read_threads": {"type": "ordinal", "values": [1, 4, 16]},
    "io_mode": {"type": "choice", "values": ["buffered", "direct"]},
}


def room(limit_gb: float, *, window: float = 0.0, ahead: float = 0.0, thread: float = 0.0, slots: float = 0.0) -> Room:
    """A model of 100 GB of experts, of which a token uses 10, and 10 GB besides. `window`, `ahead` and `thread` are GB for
    each layer or thread, `slots` those for each GB of the cache."""

    def footprint(knobs: Knobs) -> Any:
        cached = 100 if knobs.cache_gb is None else knobs.cache_gb
        layers = {0: 8, 1: 0}.get(knobs.sync_window, knobs.sync_window)
        rest = 10 + window * layers + slots * cached
        rest += ahead * knobs.prefetch_depth if knobs.prefetch != "off" else 0
        rest += thread * knobs.read_threads if knobs.io_mode == "direct" else 0
        return SimpleNamespace(one_token_gb=10.0, all_experts_gb=100.0, predicted_peak_gb=rest + cached)

    return Room(footprint, limit_gb, {})


def test_the_cache_ends_at_the_limit_or_at_the_whole_model() -> None:
    assert room(60).cache({}) == {"type": "float", "low": 10, "high": 50, "log": True}
    assert room(300).cache({})["high"] == 100  # type: ignore[index]
    assert room(19).cache({}) is None
    assert room(60, window=1).cache(SPACE)["high"] == 42  # type: ignore[index]


def test_a_rest_that_grows_with_the_cache_is_counted() -> None:
    found = room(60, slots=0.25).cache({})
    assert found is not None and 38 < found["high"] <= 40


def test_values_that_take_too_much_are_cut_with_a_reason() -> None:
    found, why = room(60, window=1, ahead=2, thread=0.01).trimmed(SPACE, 0.1)
    assert found["sync_window"]["values"] == [1, 4] and found["read_threads"]["values"] == [1, 4, 16]
    assert found["prefetch_depth"]["high"] == 2 and found["prefetch"]["when"] == {"sync_window": 1}
    assert why == {
        "sync_window=all": "it takes 8 GB beside the cache, more than 10% of the room for it",
        "prefetch_depth=4": "it takes 8 GB beside the cache, more than 10% of the room for it",
        "prefetch_depth=3": "it takes 6 GB beside the cache, more than 10% of the room for it",
    }


def test_a_knob_with_one_value_left_is_no_choice() -> None:
    found, why = room(60, window=9, thread=9).trimmed(SPACE, 0.1)
    assert "sync_window" not in found and "when" not in found["prefetch"] and "sync_window" in why
    assert found["read_threads"] == 1 and "read_threads" in why  # 16 is the default


def test_threads_are_judged_with_the_block_that_is_left() -> None:
    space = {**SPACE, "read_block_kib": {"type": "ordinal", "values": [4, 8192]}}

    def footprint(knobs: Knobs) -> Any:
        rest = knobs.read_threads * knobs.read_block_kib / 1024 if knobs.io_mode == "direct" else 0
        return SimpleNamespace(one_token_gb=10.0, all_experts_gb=100.0, predicted_peak_gb=rest + (knobs.cache_gb or 100))

    found, _ = Room(footprint, 30, {}).trimmed(space, 0.1)
    assert found["read_block_kib"] == 4 and found["read_threads"]["values"] == [1, 4, 16]


def test_nothing_is_cut_where_there_is_room() -> None:
    assert room(600, window=1, ahead=1, thread=0.1).trimmed(SPACE, 0.1) == (SPACE, {})
