"""Counters: layers and tokens add up to the totals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine import Judge, Knobs, footprint, load
from engine.measure.judge import Text
from engine.stats import BYTES, READS, Stats

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until night. "
JUDGE = Judge((Text("a", "prose", TEXT[:40], TEXT[:30]), Text("b", "prose", TEXT[::-1][:40], TEXT[30:60])))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.mark.parametrize(
    "knobs", [{}, {"sync_window": 0}, {"prefetch": "stale_gate"}, {"io_mode": "direct"}, {"cache_gb": 1.0}]
)
def test_layers_and_tokens_add_up_to_the_measurement(path: Path, knobs: dict[str, Any]) -> None:
    with load(path, Knobs(**{"cache_gb": footprint(path).one_token_gb * 1.2, **knobs})) as engine:
        m = engine.measure(JUDGE)
        layers, tokens = pd.DataFrame(engine.decoded.by_layer()), pd.DataFrame(engine.decoded.by_token())
        whole = pd.DataFrame(engine.stats.by_layer())
    assert layers.layer.tolist() == [0, 1, 2]
    for name in ("hits", "misses", "reads", "bytes_read"):
        assert layers[name].sum() == getattr(m, name), name
    assert (whole.hits.sum(), whole.bytes_read.sum()) == (engine.stats.hits, engine.stats.bytes_read)
    assert (layers.hits + layers.misses).tolist() == [m.decode_tokens * 4] * 3
    assert np.allclose(layers.hit_rate, layers.hits / (layers.hits + layers.misses))
    assert len(tokens) == m.decode_tokens
    assert np.allclose(tokens.wall_ms, tokens[["io_ms", "sync_ms", "quantize_ms", "compute_ms"]].sum(axis=1))
    assert (tokens >= 0).all().all() and (tokens.compute_ms > 0).all()
    assert tokens.io_ms.sum() == pytest.approx(m.io_ms) and tokens.sync_ms.sum() == pytest.approx(m.sync_ms)
    assert tokens.wall_ms.sum() <= m.decode_tokens / m.decode_tok_s * 1e3
    assert (m.decode_ms_p50, m.decode_ms_p95) == tuple(tokens.wall_ms.quantile([0.5, 0.95]))
    assert m.compute_ms_per_token == pytest.approx(tokens.compute_ms.mean())


def test_a_wait_for_the_disk_is_in_io_and_not_in_compute(path: Path) -> None:
    """12 kB per expert at 1 MB/s: every missed expert takes 12 ms."""
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb, ssd_gbps=0.001)) as engine:
        m = engine.measure(Judge((Text("a", "prose", TEXT[:20], TEXT[:12]),)))
        tokens = engine.decoded.by_token()
    assert m.io_ms_per_token >= 0.9 * m.bytes_per_token / 1e6 * 1e3
    assert np.median(tokens["compute_ms"]) < 0.5 * np.median(tokens["io_ms"])


def test_everything_resident_has_tokens_but_no_layers(path: Path) -> None:
    with load(path) as engine:
        m = engine.measure(JUDGE)
        assert engine.decoded.by_layer() == []
        tokens = engine.decoded.by_token()
    assert len(tokens["wall_ms"]) == m.decode_tokens
    assert np.array_equal(tokens["wall_ms"], tokens["compute_ms"]) and m.page_cache_share is None


def test_counts_are_taken_apart_and_put_together() -> None:
    stats = Stats()
    stats.count_layers(2)
    stats.count_uses(0, 3, 1)
    before = stats.copy()
    stats.count_uses(1, 0, 4)
    stats.layers[1, [READS, BYTES]] += 2, 107
    with stats.timed_token(), stats.timed("io_ms"):
        pass
    part = before.copy()
    part.reset()
    part.add(stats, since=before)
    assert (part.hits, part.misses, part.reads, part.bytes_read) == (0, 4, 2, 107)
    assert (part.layers_missed, stats.layers_missed) == (1, 2)
    assert part.by_layer()[0]["hit_rate"] is None and part.by_layer()[1]["bytes_read"] == 107
    assert len(part.by_token()["wall_ms"]) == 1 and before.by_layer()[1]["misses"] == 0
    counted = stats.layers
    stats.reset()
    assert stats.layers is counted and not counted.any()  # native code holds its address
    assert stats.as_dict() == Stats().as_dict() and stats.as_dict()["hit_rate"] is None
    assert not any(len(ms) for ms in stats.by_token().values())
