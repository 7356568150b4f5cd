"""Identity of prefix files: what gives other numbers gives another key."""

from __future__ import annotations

import pytest

from engine import Knobs, load
from engine.prompt_cache import identity
from engine.prompt_cache.identity import cache_key


def key_of(engine):
    return cache_key(engine.checkpoint, engine.knobs, engine.bits, engine.chunk.tokens)


def test_lossless_knobs_share_a_key_and_lossy_ones_do_not(checkpoint):
    path = checkpoint("qwen3_moe")
    keys = []
    for knobs in ({}, {"cache_gb": 0.001}, {"cache_gb": 0.001, "cold_drop": 0.5}, {"top_k": 2}, {"prefill_chunk": 64}):
        with load(path, Knobs(**knobs)) as engine:
            keys.append(key_of(engine))
    assert keys[0] == keys[1] and len(set(keys)) == 4
    assert all(len(key) == identity.DIGITS for key in keys)


@pytest.mark.parametrize("what", ["model", "version"])
def test_other_model_and_version_have_another_key(checkpoint, monkeypatch, what):
    with load(checkpoint("qwen3_moe")) as engine:
        key = key_of(engine)
        if what == "version":
            monkeypatch.setattr(identity, "__version__", "0.0.1")
            assert key_of(engine) != key
    if what == "model":
        with load(checkpoint("mixtral")) as engine:
            assert key_of(engine) != key
