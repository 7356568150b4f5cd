"""Result: totals and shares of the tokens' counts."""

from __future__ import annotations

import numpy as np

from engine.replay.result import COUNTS, ReplayResult


def test_totals_are_sums_over_the_tokens() -> None:
    table = dict(zip(COUNTS, np.arange(16).reshape(2, 8).T, strict=True))
    result = ReplayResult(table, slots=3, experts=12, prefetch_wasted_bytes=5, why_not=("a reason",))
    assert (result.tokens, result.misses, result.reads, result.bytes_read, result.prefetch_issued) == (2, 10, 12, 14, 18)
    figures = result.as_dict()
    assert {name: figures[name] for name in COUNTS} == {name: int(values.sum()) for name, values in table.items()}
    assert (figures["hit_rate"], figures["bytes_per_token"], figures["layers_missed_per_token"]) == (8 / 18, 7, 8)
    assert (figures["exact"], figures["why_not"], figures["cached_share"]) == (False, ["a reason"], 0.25)


def test_without_tokens_there_are_no_shares() -> None:
    result = ReplayResult(dict.fromkeys(COUNTS, np.zeros(0, np.int64)), 3, 12, 0)
    assert result.exact and result.hit_rate is None and result.as_dict()["bytes_per_token"] is None
