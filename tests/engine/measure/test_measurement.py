"""Measurement: figures from another engine are checked for names, types and finite values."""

from __future__ import annotations

import pytest

from engine import (
    HeadraceError,
    Measurement,
)


def test_figures_of_another_engine_are_checked() -> None:
    least = {"decode_tok_s": 3, "peak_memory_gb": 1.5, "perplexity": None}
    assert Measurement.from_mapping({**least, "token_ms": [1, 2.5]}).token_ms == [1, 2.5]
    for wrong, message in (
        ({"decode_tok_s": float("nan")}, "decode_tok_s=nan has the wrong type"),
        ({"hits": 1.5}, "hits=1.5"),
        ({"decode_tok_s": None}, "decode_tok_s=None"),
        ({"hit_rate": True}, "hit_rate=True"),
        ({"ppl": 3.0}, "ppl is not a figure"),
    ):
        with pytest.raises(HeadraceError, match=message):
            Measurement.from_mapping({**least, **wrong})
    with pytest.raises(HeadraceError, match="the figures lack perplexity"):
        Measurement.from_mapping({"decode_tok_s": 3.0, "peak_memory_gb": 1.0})
