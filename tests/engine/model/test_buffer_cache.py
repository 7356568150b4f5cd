"""Buffer cache: a limit is set on loading, and nothing is wired, by us or by the parts of mlx-lm that run."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from engine import Knobs, load
from engine.model.buffer_cache import buffer_cache_bytes
from engine.system.shipped import PACKAGES


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_moe")


def test_loading_limits_the_cache(tiny: Path) -> None:
    mx.set_cache_limit(10**9)
    with load(tiny, Knobs()) as engine:
        engine.logits([1, 2, 3])
        assert mx.set_cache_limit(buffer_cache_bytes()) == buffer_cache_bytes()
        assert mx.get_cache_memory() <= buffer_cache_bytes()


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Limits that were set for wired memory, on a device that recommends one."""
    limits: list[int] = []
    info = {**mx.device_info(), "max_recommended_working_set_size": 10**9}
    monkeypatch.setattr(mx, "device_info", lambda *_: info)
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: limits.append(limit) or 0)
    return limits


def test_nothing_is_wired(tiny: Path, wired: list[int]) -> None:
    generate = importlib.import_module("mlx_lm.generate")
    with load(tiny, Knobs()) as engine:
        list(engine.generate("hello", 2))
        list(generate.stream_generate(engine.model, engine.tokenizer, "hello", max_tokens=2))
        generate.BatchGenerator(engine.model).close()
    assert not wired


def test_no_source_sets_a_wired_limit() -> None:
    call = re.compile(r"\b(set_wired_limit|mlock|mlockall)\(")
    found = [p for room in ("engine", "harness") for p in (PACKAGES / room).rglob("*.py") if call.search(p.read_text())]
    assert not found
