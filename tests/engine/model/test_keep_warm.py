"""Keep-warm: products while tokens are decoded, none after a pause, none after the end; results do not change."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine import Knobs, footprint, load
from engine.model import keep_warm
from engine.model.environment import backend_knobs
from engine.model.keep_warm import KeepWarm


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_products_follow_tokens_and_end_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_warm, "LEASE_S", 0.1)
    warm = KeepWarm(mx.default_device())
    try:
        time.sleep(0.05)
        assert warm.products == 0 and not warm.working
        for _ in range(2):
            before = warm.products
            warm.touch()
            wait_for(lambda before=before: warm.products > before)  # type: ignore[misc]
            wait_for(lambda: not warm.working)
    finally:
        warm.close()
    done = warm.products
    warm.touch()
    assert not warm.working and warm.products == done, "nothing runs after the end"


def test_an_engine_keeps_warm_while_decoding_with_the_same_logits(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("deepseek_v3", None, True)
    monkeypatch.setattr(backend_knobs, "backend", lambda: "metal")
    texts, logits = [], []
    for on in (False, True):
        with load(path, Knobs(cache_gb=footprint(path).one_token_gb, gpu_keep_warm=on)) as engine:
            logits.append(engine.logits(engine.encode("The miller")))
            warm = engine.warm
            assert (warm is not None) == on
            if warm is not None:
                assert warm.products == 0, "a prefill is no decoding"
            texts.append("".join(engine.generate("The miller", max_tokens=8)))
            if warm is not None:
                wait_for(lambda warm=warm: warm.products > 0)  # type: ignore[misc]
    assert warm is not None and not warm.working and not warm._thread.is_alive()
    assert np.array_equal(logits[0], logits[1]) and texts[0] == texts[1]
