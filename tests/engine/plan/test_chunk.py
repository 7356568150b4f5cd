"""Chunk: the largest size that fits, for the same reason each time, and one decision for all users of a setting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Checkpoint, Knobs, footprint, load
from engine.plan.chunk import SIZES, Chunk, ChunkMemory, choose_chunk
from engine.plan.footprint import chunk_for

GB = 10**9


def chosen(bytes_a_token: int, rest: int, usable: int, context: int = 8192) -> Chunk:
    return choose_chunk(
        lambda tokens: ChunkMemory(tokens * bytes_a_token, tokens * bytes_a_token + rest), context=context, usable=usable
    )


@pytest.mark.parametrize(
    ("bytes_a_token", "rest", "context", "tokens", "why"),
    [
        (10**5, GB, 8192, 4096, "the largest that pays here; a pass takes 0.41 of 16 GB"),
        (10**5, GB, 2048, 2048, "covers the model's context; a pass takes 0.205 of 16 GB"),
        (10**5, GB, 2049, 4096, "covers the model's context; a pass takes 0.41 of 16 GB"),
        (10**5, GB, 30, 128, "covers the model's context; a pass takes 0.0128 of 16 GB"),
        (10**6, GB, 8192, 1024, "2048 tokens would take 2.05 GB a pass, above 12.5% of 16 GB; a pass takes 1.02 of 16 GB"),
        (10**5, 14 * GB + GB // 4, 8192, 1024, "2048 tokens would take 14.5 GB in all, above 90% of 16 GB; a pass"),
        (10**5, 20 * GB, 8192, 128, "the smallest size, although 128 tokens would take 20 GB in all"),
    ],
)  # fmt: skip
def test_the_largest_size_that_fits(bytes_a_token: int, rest: int, context: int, tokens: int, why: str) -> None:
    found = chosen(bytes_a_token, rest, 16 * GB, context)
    assert found.tokens == tokens and found.why.startswith(why) and "\n" not in str(found)
    assert found.tokens in SIZES


def test_more_memory_never_gives_a_smaller_chunk() -> None:
    sizes = [chosen(10**6, 2 * GB, gb * GB).tokens for gb in range(1, 64)]
    assert sizes == sorted(sizes) and {128, 256, 512, 1024, 2048, 4096} == set(sizes)


def test_no_larger_chunk_than_pays() -> None:
    found = choose_chunk(lambda tokens: ChunkMemory(tokens, tokens), context=8192, usable=GB, largest=512)
    assert found.tokens == 512 and found.why.startswith("the largest that pays here")


def test_every_user_of_a_setting_has_the_same_chunk(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Checkpoint.open(checkpoint("qwen3_moe"))
    least = footprint(source).one_token_gb
    settings = [Knobs(), Knobs(cache_gb=least), Knobs(cache_gb=2 * least, io_mode="direct", sync_window=0)]
    assert {chunk_for(source, knobs).tokens for knobs in settings} == {512}  # its longest context
    monkeypatch.setattr("engine.plan.footprint.usable_memory_bytes", lambda: 5_000_000)
    small = chunk_for(source, settings[1])
    assert small.tokens == 128 and footprint(source, settings[1], 64).prefill_chunk == 128
    with load(checkpoint("qwen3_moe"), settings[1]) as engine:
        assert engine.chunk == small and engine.forward.chunk == 128
    assert chunk_for(source, Knobs(prefill_chunk=300)) == Chunk(300, "as set")


def test_an_untraceable_module_has_a_chunk(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def untraceable(*_: object, **__: object) -> None:
        raise TypeError("unsupported")

    monkeypatch.setattr("engine.plan.memory.activations.pass_memory", untraceable)
    found = chunk_for(Checkpoint.open(checkpoint("qwen3_moe")), Knobs())
    assert found == Chunk(512, "its memory cannot be predicted: unsupported")
