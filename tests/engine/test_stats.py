"""Stats: totals, layers and tokens are counted, copied, reset and subtracted consistently."""

from __future__ import annotations

import numpy as np
import pytest

from engine.stats import LayerCounts, Stats


def counted() -> Stats:
    stats = Stats(layers=[LayerCounts(), LayerCounts(sure=4)])
    stats.tokens = 2
    stats.count_uses(0, 3, 1)
    stats.count_read(0, 100)
    stats.count_read(None, 50)
    return stats


def test_totals_and_layers_agree() -> None:
    stats = counted()
    assert (stats.hits, stats.misses, stats.reads, stats.bytes_read) == (3, 1, 2, 150)
    first, second = stats.by_layer()
    assert (first["hits"], first["misses"], first["hit_rate"], first["bytes_read"]) == (3, 1, 0.75, 100)
    assert (second["hits"], second["hit_rate"]) == (8, 1.0)  # 4 per token


def test_the_difference_to_an_earlier_copy_is_added() -> None:
    stats = counted()
    before, total = stats.copy(), Stats(layers=[LayerCounts(), LayerCounts()])
    stats.count_uses(1, 5, 2)
    with stats.timed_token():
        stats.io_ms += 1.0
    total.add(stats, since=before)
    assert (total.hits, total.misses, total.reads) == (5, 2, 0)
    assert [counts.hits for counts in total.layers] == [0, 5]
    times = total.by_token()
    assert times["io_ms"].tolist() == [1.0] and len(times["wall_ms"]) == 1


def test_a_reset_keeps_the_sure_hits_of_layers() -> None:
    stats = counted()
    stats.reset()
    assert stats.as_dict()["hits"] == 0 and stats.hit_rate is None and [c.sure for c in stats.layers] == [0, 4]


def test_compute_is_wall_time_without_the_waits() -> None:
    stats = Stats()
    with stats.timed_token(), stats.timed("sync_ms"):
        pass
    times = stats.by_token()
    assert np.allclose(times["wall_ms"] - times["sync_ms"], times["compute_ms"], atol=1e-9)


def test_shares_are_none_without_a_whole() -> None:
    stats = Stats()
    for name in ("hit_rate", "prefetch_recall", "prefetch_precision", "prefetch_coverage", "passes_per_window"):
        assert getattr(stats, name) is None
    stats.predicted, stats.predicted_of = 3, 4
    assert stats.prefetch_recall == pytest.approx(0.75)
