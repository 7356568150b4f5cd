"""Prefix file: complete and private, found by its header, refused when a byte differs."""

from __future__ import annotations

import resource
import stat

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    load_prompt_cache,
)

from engine.prompt_cache.file import PrefixError, key_of, load_prefix, read_header, unsaveable, write_prefix

KEY, TOKENS = "0123456789abcdef", np.array([3, 1, -4, 1 << 40])


def filled(cache, dtype=mx.bfloat16, tokens=40):
    values = mx.random.normal((1, 2, tokens, 64)).astype(dtype)
    cache.update_and_fetch(values, values + 1)
    return cache


def arrays():
    cache = ArraysCache(3)
    cache[0], cache[2] = mx.random.normal((1, 3, 8)), mx.random.normal((1, 2, 4)).astype(mx.float16)
    return cache


def every_class():
    return [
        filled(KVCache()), filled(KVCache(), mx.float32), filled(RotatingKVCache(16)), filled(RotatingKVCache(64, keep=4)),
        arrays(), filled(ChunkedKVCache(16)), CacheList(filled(KVCache()), arrays()), filled(ConcatenateKVCache()),
        filled(QuantizedKVCache()), KVCache(), ArraysCache(2),
    ]  # fmt: skip


def flat(value):
    if isinstance(value, mx.array):
        return [str(value.dtype), value.shape, bytes(memoryview(mx.contiguous(value).view(mx.uint8).reshape(-1)))]
    if isinstance(value, (list, tuple)):
        return [flat(v) for v in value]
    return value if isinstance(value, (int, float, bool, str, type(None))) else flat(list(vars(value).values()))


def test_every_class_comes_back_bit_for_bit(tmp_path):
    cache = every_class()
    assert unsaveable(cache) is None
    written = write_prefix(tmp_path, KEY, TOKENS, cache, "user")
    assert stat.S_IMODE(written.path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [written.path.name]
    header = read_header(written.path)
    assert header.tokens.tolist() == TOKENS.tolist() and header.kind == "user" and not header.trimmable
    assert header.nbytes == written.path.stat().st_size and key_of(written.path.name) == KEY
    loaded = load_prefix(header)
    assert [type(c) for c in loaded] == [type(c) for c in cache]
    assert [sorted(vars(c)) for c in loaded] == [sorted(vars(c)) for c in cache]
    assert [flat(c.state) for c in loaded] == [flat(c.state) for c in cache]
    assert len(load_prompt_cache(str(written.path))) == len(cache)


def test_class_that_the_format_does_not_know_is_named():
    class Own(KVCache):
        pass

    class More(ArraysCache):
        pass

    assert unsaveable([KVCache(), Own()]) == "Own"
    assert unsaveable([CacheList(KVCache(), Own())]) == "Own"
    odd = KVCache()
    odd.extra = 1
    assert unsaveable([odd]) == "KVCache"


@pytest.mark.parametrize("at", ["length", "header", "tokens", "data", "end"])
def test_changed_byte_is_refused(tmp_path, at):
    file = write_prefix(tmp_path, KEY, TOKENS, [filled(KVCache())], "user")
    content = bytearray(file.path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    place = {"length": 1, "header": 9, "tokens": content.index(b"3 1 -4"), "data": header + 40, "end": len(content) - 1}[at]
    content[place] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(PrefixError, match="damaged"):
        load_prefix(read_header(file.path))


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_shortened_file_is_refused(tmp_path, left):
    file = write_prefix(tmp_path, KEY, TOKENS, [filled(KVCache())], "user")
    file.path.write_bytes(file.path.read_bytes()[:left])
    with pytest.raises(PrefixError, match="damaged"):
        read_header(file.path)


def test_failed_write_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            write_prefix(tmp_path, KEY, TOKENS, [filled(KVCache())], "user")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_missing_file_is_an_os_error(tmp_path):
    file = write_prefix(tmp_path, KEY, TOKENS, [filled(KVCache())], "user")
    file.path.unlink()
    for read in (lambda: read_header(file.path), lambda: load_prefix(file)):
        with pytest.raises(FileNotFoundError):
            read()
