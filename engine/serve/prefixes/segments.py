"""Segments: where a prompt is interrupted to keep the cache of its beginning.

mlx-lm's server ends a segment after the system prompt and before the start of the model's reasoning. Every segment is at
least one more pass over the experts, which a streamed model reads from disk. A cache that can be cut back needs none of
them: the prompt's own cache contains all its prefixes. Other caches do; the system prompt is worth a segment if it fills a
prefill chunk.
"""

from __future__ import annotations


def join_segments(
    segments: list[list[int]], kinds: list[str], *, can_cut: bool, chunk: int
) -> tuple[list[list[int]], list[str]]:
    """Join segments that are not worth a pass. `can_cut`: the caches can be cut back; `chunk`: prefill chunk size."""
    joined: list[list[int]] = []
    names: list[str] = []
    for segment, kind in zip(segments, kinds, strict=True):
        if joined and (can_cut or (names[-1] == "system" and len(joined[-1]) < chunk)):
            joined[-1] = joined[-1] + segment
            names[-1] = "user" if names[-1] == "system" else names[-1]
        else:
            joined.append(segment)
            names.append(kind)
    return joined, names
