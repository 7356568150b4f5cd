"""Prompt cache: the longest prefix is reused, logits stay equal to the last bit, and the limits hold."""

from __future__ import annotations

import resource
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from engine import load
from engine.generation.trimming import always_trimmable
from engine.prompt_cache.folder import PrefixFolder
from engine.serve import writer
from engine.serve.prompt_cache import PromptCache
from engine.serve.server import WORDS

FAMILIES = ("qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "lfm2_moe", "nemotron_h", "kimi_k25")
CHUNK, PREFIX, PROMPT = 16, 48, 60  # gpt_oss drops tokens from 24 on
TOKENS = np.random.default_rng(3).integers(0, 255, PROMPT).tolist()
KEY = "a" * 16


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(writer, "IDLE_S", 0.0)


def kv(tokens):
    """A cache whose keys are the tokens."""
    cache = KVCache()
    values = mx.array(tokens, dtype=mx.float32).reshape(1, 1, -1, 1)
    cache.update_and_fetch(values, values)
    return [cache]


def keys_of(cache):
    return cache[0].keys[0, 0, : cache[0].offset, 0].tolist()


def on_disk(path, limit=1 << 30, said=None, **options):
    say = (lambda line: None) if said is None else said.append
    return PromptCache(folder=PrefixFolder(path, KEY, limit, say, WORDS), say=say, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("restart", [False, True])
def test_logits_are_those_of_a_fresh_prefill(checkpoint, tmp_path, family, restart):
    """The prefix from memory, or from disk after a restart, cut where its class can be cut."""
    with load(checkpoint(family)) as engine:

        def run(tokens, cache):
            parts = []
            for begin in range(0, len(tokens), CHUNK):
                parts.append(engine.model(mx.array([tokens[begin : begin + CHUNK]]), cache=cache)[0])
                mx.eval(parts[-1], [c.state for c in cache])
            return np.concatenate([np.array(p.astype(mx.float32)) for p in parts])

        fresh = run(TOKENS, make_prompt_cache(engine.model))
        first = make_prompt_cache(engine.model)
        run(TOKENS[:PREFIX], first)
        prompts = on_disk(tmp_path)
        prompts.insert_cache("m", TOKENS[:PREFIX], first)
        if restart:
            prompts.close()
            prompts = on_disk(tmp_path)
            assert len(prompts) == 0
        for _ in range(2):  # the first use must not change what is kept
            cache, rest = prompts.fetch_nearest_cache("m", TOKENS)
            assert rest == TOKENS[PREFIX:]
            assert np.array_equal(run(rest, cache), fresh[PREFIX:])
        shorter = TOKENS[: 2 * CHUNK + 1]
        cache, rest = prompts.fetch_nearest_cache("m", shorter)
        if always_trimmable(first):
            own = make_prompt_cache(engine.model)
            run(shorter[:-1], own)
            assert rest == shorter[-1:]
            assert np.array_equal(run(rest, cache), run(rest, own))
        else:
            assert cache is None and rest == shorter
        prompts.close()


def test_edited_last_message_reuses_the_common_part():
    prompts = PromptCache()
    prompts.insert_cache("m", [1, 2, 3, 4, 5, 6], kv([1, 2, 3, 4, 5, 6]))
    cache, rest = prompts.fetch_nearest_cache("m", [1, 2, 3, 9, 9])
    assert keys_of(cache) == [1, 2, 3] and rest == [9, 9]
    assert prompts.fetch_nearest_cache("other", [1, 2, 3, 9, 9]) == (None, [1, 2, 3, 9, 9])
    assert prompts.fetch_nearest_cache("m", [7, 2]) == (None, [7, 2])
    assert prompts.fetch_nearest_cache("m", [1]) == (None, [1])


def test_known_prompt_leaves_a_token_to_compute():
    prompts = PromptCache()
    prompts.insert_cache("m", [1, 2, 3], kv([1, 2, 3]))
    cache, rest = prompts.fetch_nearest_cache("m", [1, 2, 3])
    assert keys_of(cache) == [1, 2] and rest == [3]


def test_contained_prefixes_are_kept_once():
    prompts = PromptCache()
    for tokens in ([1, 2], [1, 2, 3, 4], [1, 2, 3], [1, 9], [1, 9]):
        prompts.insert_cache("m", tokens, kv(tokens), cache_type="user")
    assert len(prompts) == 2
    assert prompts.stats_by_type()["user"] == {"n_sequences": 2, "n_bytes": prompts.nbytes}


def test_limits_of_memory_hold_and_the_least_recently_used_goes():
    size = sum(c.nbytes for c in kv([0]))
    prompts = PromptCache(max_size=3, max_bytes=10 * size)
    for n in range(3):
        prompts.insert_cache("m", [n, n], kv([n, n]))
    prompts.fetch_nearest_cache("m", [0, 0, 5])
    prompts.insert_cache("m", [7, 7], kv([7, 7]))
    assert prompts.fetch_nearest_cache("m", [1, 1, 5])[0] is None
    assert prompts.fetch_nearest_cache("m", [0, 0, 5])[0] is not None
    prompts.trim_to(n_bytes=size)
    assert len(prompts) == 1 and prompts.nbytes <= size
    prompts.trim_to(n_sequences=0)
    assert len(prompts) == 0 == prompts.nbytes


def test_larger_prefix_than_memory_is_said_once():
    said = []
    prompts = PromptCache(max_bytes=10, say=said.append)
    for n in range(2):
        prompts.insert_cache("m", [n, n], kv([n, n]))
    assert len(prompts) == 0 and len(said) == 1 and "above --prompt-cache-gb 1e-08" in said[0]


def test_bytes_are_flat_over_500_requests():
    prompts, before = PromptCache(max_bytes=100_000), mx.get_active_memory()
    rng, most = np.random.default_rng(1), 0
    for _ in range(500):
        tokens = rng.integers(0, 99, rng.integers(2, 400)).tolist()
        cache, rest = prompts.fetch_nearest_cache("m", tokens)
        assert len(rest) >= 1 and (cache is None or keys_of(cache) == tokens[: -len(rest)])
        prompts.insert_cache("m", tokens, kv(tokens))
        most = max(most, prompts.nbytes)
    assert most <= 100_000 and len(prompts) <= prompts.max_size
    mx.clear_cache()
    assert mx.get_active_memory() - before < 1 << 20


def test_batch_is_not_kept_alive_by_an_extracted_cache():
    """mlx-lm extracts a request's cache lazily; what is kept is evaluated."""
    from mlx_lm.models.cache import BatchKVCache

    batch = BatchKVCache([0, 0])
    values = mx.zeros((2, 4, 4096, 64))
    batch.update_and_fetch(values, values)
    mx.eval(batch.state)
    before = mx.get_active_memory()
    prompts = PromptCache()
    prompts.insert_cache("m", list(range(4096)), [batch.extract(0)])
    del batch, values
    assert mx.get_active_memory() < before


def test_file_is_loaded_only_if_it_saves_enough(tmp_path):
    prompts = on_disk(tmp_path)
    tokens = list(range(400))
    prompts.insert_cache("m", tokens, kv(tokens))
    prompts.close()
    prompts = on_disk(tmp_path)
    assert prompts.fetch_nearest_cache("m", [*range(20), 999, 999])[0] is None
    cache, rest = prompts.fetch_nearest_cache("m", [*range(100), 999])
    assert keys_of(cache) == list(range(100)) and rest == [999] and len(prompts) == 1
    prompts.close()


def test_damaged_file_is_a_miss_and_the_next_best_is_used(tmp_path):
    said: list[str] = []
    prompts = on_disk(tmp_path)
    for tokens in ([*range(40)], [*range(30), *range(60, 90)]):
        prompts.insert_cache("m", tokens, kv(tokens))
    prompts.close()
    best = next(f for f in prompts.folder.refresh() if len(f.tokens) == 40)
    content = bytearray(best.path.read_bytes())
    content[-1] ^= 1
    best.path.write_bytes(content)
    prompts = on_disk(tmp_path, said=said)
    cache, rest = prompts.fetch_nearest_cache("m", [*range(40), 999])
    assert keys_of(cache) == list(range(30)) and len(rest) == 11
    assert len(said) == 1 and "damaged" in said[0]
    prompts.close()


def test_folder_that_disappears_is_no_error(tmp_path):
    said: list[str] = []
    prompts = on_disk(tmp_path / "gone", said=said)
    shutil.rmtree(tmp_path / "gone")
    prompts.insert_cache("m", [1, 2], kv([1, 2]))
    assert prompts.fetch_nearest_cache("m", [1, 2, 3])[1] == [3]
    prompts.close()
    assert len(said) == 1 and "memory only" in said[0]


def test_full_disk_is_said_and_memory_goes_on(tmp_path):
    said: list[str] = []
    prompts = on_disk(tmp_path, said=said)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        prompts.insert_cache("m", [1, 2], kv([1, 2]))
        prompts.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert prompts.fetch_nearest_cache("m", [1, 2, 3])[1] == [3]
    assert len(said) == 1 and "memory only" in said[0] and not list(tmp_path.iterdir())
