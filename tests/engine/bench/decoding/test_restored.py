"""bench restored: settings are legal, and misses are equal where time decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine import Judge, Knobs
from engine.bench.decoding.restored import bench_restored, settings
from engine.measure.judge import Text

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT[:60], TEXT[:20]), Text("b", "prose", TEXT[::-1][:40], TEXT[30:60])))


def test_settings_differ_and_every_fourth_depends_on_time(checkpoint: Callable[..., Path]) -> None:
    found = settings(checkpoint("qwen3_moe", 4), 20)
    assert len({str(knobs) for knobs in found}) == 20 and all(knobs.lossy == {} and knobs.streams for knobs in found)
    assert [knobs.prefetch == "off" and knobs.sync_window == 1 for knobs in found] == [True, True, True, False] * 5


def test_misses_are_equal(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("qwen3_moe", 4)
    first = settings(path, 1)[0]
    some = [first, Knobs(cache_gb=first.cache_gb, sync_window=0)]
    result = bench_restored(path, JUDGE, some, rounds=2, tokens=12, warm_up=[0])
    (summary,) = result["summary"]
    assert (summary["exact"], summary["equal"], summary["by_time"]) == (1, 1, 1)
    low, middle, high = summary["speed_ratio"]
    assert low <= middle <= high and result["rows"][0]["filled_gb"] > 0
