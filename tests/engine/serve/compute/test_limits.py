"""Limits of a context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import HeadraceError, Knobs, load
from engine.serve.compute import limits
from engine.serve.compute.limits import ContextLimit, context_limit, kv_bytes
from engine.serve.errors import RequestError
from engine.serve.options import ServeOptions


def test_what_fits_and_what_does_not() -> None:
    limit = ContextLimit(100, "--context", 1.0)
    assert limit.fit(40, None, 2048) == 60 and limit.fit(40, None, 10) == 10 and limit.fit(40, 60, 10) == 60
    with pytest.raises(RequestError, match=r"40 tokens of the prompt \+ max_tokens 61 = 101.*limit is 100.*at most 60") as e:
        limit.fit(40, 61, 10)
    assert e.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="100 tokens of the prompt, and the limit is 100"):
        limit.fit(100, None, 10)
    assert ContextLimit(None, "none", 0.0).fit(10**6, None, 10) == 10


def test_the_smallest_limit_counts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny, Knobs()) as engine:
        growing, fixed = kv_bytes(engine.model)
        assert growing == 5 * 2 * 2 * 16 * 4 and fixed == 0  # layers, keys and values, heads, dimensions, float32
        assert context_limit(engine, ServeOptions()).tokens == 512
        assert context_limit(engine, ServeOptions(context=64)).source == "--context"
        with pytest.raises(HeadraceError, match="above the model's 512"):
            context_limit(engine, ServeOptions(context=513))
        monkeypatch.setattr(limits, "memory_bytes", lambda: int(engine_bytes(engine) + 2 * growing * 300))
        assert context_limit(engine, ServeOptions(prompt_cache_gb=0)).tokens in (299, 300)
        with pytest.raises(HeadraceError, match="no memory is left"):
            context_limit(engine, ServeOptions(prompt_cache_gb=1))


def engine_bytes(engine: Any) -> float:
    return (
        limits.weights_of(engine.checkpoint, engine.knobs).total_gb * 1e9
        + limits.process_bytes()
        + limits.buffer_cache_bytes()
    )


def test_a_sliding_window_does_not_grow(checkpoint: Any) -> None:
    with load(checkpoint("gpt_oss"), Knobs()) as engine:
        growing, fixed = kv_bytes(engine.model)
    assert growing == 2 * 2 * 2 * 16 * 4 and fixed > 0


def test_a_context_that_is_too_long_is_400_over_http(client: Any) -> None:
    reply = client.text("x" * 600)
    assert reply.status == 400 and reply.json["error"]["code"] == "context_length_exceeded"
    assert "604" in reply.json["error"]["message"] and "512" in reply.json["error"]["message"]
    assert client.text("x" * 510, max_tokens=None).json["usage"]["completion_tokens"] == 2
