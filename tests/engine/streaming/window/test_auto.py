"""Auto window: the faster size is kept and compared again after a while."""

from __future__ import annotations

from engine.streaming.window.auto import AutoWindow


def test_auto_keeps_the_faster_window() -> None:
    """A fake clock gives each size its time per token; the faster size changes half way."""
    now, ms = 0.0, {1: 3.0, 8: 2.0}
    auto = AutoWindow(8, clock=lambda: now)
    sizes = []
    for token in range(256):
        if token == 128:
            ms[8] = 5.0
        sizes.append(auto.size(True))
        now += ms[sizes[-1]]
    assert sizes[10:60] == [8] * 50 and sizes[200:250] == [1] * 50
    assert {1, 8} == set(sizes[64:74])


def test_auto_counts_decoding_only() -> None:
    now = 0.0
    auto = AutoWindow(8, clock=lambda: now)
    for token in range(40):
        now += {1: 3.0, 8: 2.0}[auto.size(True)]
        if token % 3 == 0:
            auto.size(False)
            now += 1000.0
    assert auto.size(True) == 8
