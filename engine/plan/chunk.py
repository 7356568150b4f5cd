"""Chunk: the number of a prompt's tokens in one pass, chosen by memory (`prefill_chunk=auto`).

A chunk reads each expert that any of its tokens uses once. Where nearly every expert is used, a prompt in half as many
chunks therefore reads half as many bytes. The price is the memory of a pass, which grows with the chunk.

The choice is the largest power of two that meets two limits: a pass takes at most `PASS_SHARE` of the usable memory, and the
whole run at most `RUN_SHARE`. It is never above the size that pays on the backend. The first limit does not depend on the
cache, so settings that leave room have the same chunk as the resident model, and round as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

SIZES = (4096, 2048, 1024, 512, 256, 128)  # tokens
# The largest size that pays, in tokens. On an H200, speed still grows at 4096. On the CPU 2048 is slower than 512
# (docs/evidence/speed.md), probably by the scores that attention computes and its mask discards. Metal is not measured.
LARGEST = {"cpu": 512, "cuda": 4096, "metal": 4096}
CONTEXT = 8192  # tokens for which memory is planned, or the model's longest context if that is shorter
PASS_SHARE = 1 / 8
RUN_SHARE = 0.9  # the rest is for the process itself, the system and other programs
UNKNOWN = 512  # tokens, for a model whose memory cannot be predicted
GB = 1e9


@dataclass(frozen=True)
class Chunk:
    """The chunk of a setting in tokens, and the reason for it in one phrase."""

    tokens: int
    why: str

    def __str__(self) -> str:
        return f"{self.tokens} tokens ({self.why})"


@dataclass(frozen=True)
class ChunkMemory:
    """Bytes that one pass over a chunk takes besides weights and keys and values, and that the whole run takes."""

    activations: int
    run: int


def parts_of(tokens: int, chunk: int) -> Iterator[slice]:
    """The parts of a prompt of `tokens` tokens that are computed in one pass each."""
    for begin in range(0, tokens, chunk):
        yield slice(begin, min(begin + chunk, tokens))


def choose_chunk(memory: Callable[[int], ChunkMemory], *, context: int, usable: int, largest: int = SIZES[0]) -> Chunk:
    """Return the largest of `SIZES` up to `largest` whose `memory` fits into `usable` bytes; the smallest if none does.

    `context`: the model's longest text in tokens, as far as it is planned for. A size of twice that has no use.
    """
    too_large = ""
    for tokens in SIZES:
        if tokens > largest or (tokens >= 2 * context and tokens != SIZES[-1]):
            continue
        need = memory(tokens)
        over = _over(need, usable)
        if not over:
            reason = too_large or ("covers the model's context" if tokens >= context else "the largest that pays here")
            return Chunk(tokens, f"{reason}; a pass takes {_gb(need.activations)} of {_gb(usable)} GB")
        too_large = f"{tokens} tokens would take {over}"
    return Chunk(SIZES[-1], f"the smallest size, although {too_large}")


def _over(need: ChunkMemory, usable: int) -> str:
    """The limit that a chunk exceeds, in words; empty if it exceeds none."""
    if need.activations > PASS_SHARE * usable:
        return f"{_gb(need.activations)} GB a pass, above {PASS_SHARE:.1%} of {_gb(usable)} GB"
    if need.run > RUN_SHARE * usable:
        return f"{_gb(need.run)} GB in all, above {RUN_SHARE:.0%} of {_gb(usable)} GB"
    return ""


def _gb(nbytes: float) -> str:
    return f"{nbytes / GB:.3g}"
