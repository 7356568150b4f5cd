"""Segments: where a prompt is interrupted to keep the cache of its beginning.

Every segment is at least one more pass over the experts, which a streamed model reads from disk. A cache that can be cut
back needs none: the prompt's own cache contains all its prefixes. Other caches (recurrent states, sliding windows) are kept
at two places. One is the end of the system prompt, if that fills a prefill chunk. The other is the end of what the next turn
of the conversation begins with: templates end a prompt with text, such as the start of the model's reasoning, that they
leave out of later turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.generation.trimming import common_prefix

NEXT_TURN = ({"role": "assistant", "content": "x"}, {"role": "user", "content": "y"})


def split_prompt(
    prompt: list[int], segments: Sequence[list[int]], kinds: Sequence[str], *, can_cut: bool, chunk: int, stable: int | None
) -> tuple[list[list[int]], list[str]]:
    """Segments of a prompt and their kinds, instead of those of mlx-lm's server.

    `can_cut`: the model's caches can be cut back. `chunk`: prefill chunk size. `stable`: tokens that the next turn shares,
    None if it is not known.
    """
    if can_cut:
        return [prompt], ["user"]
    ends: dict[int, str] = {}
    if kinds[0] == "system" and len(segments[0]) >= chunk:
        ends[len(segments[0])] = "system"
    if stable is None and len(segments) > 1 and kinds[-1] == "assistant":
        stable = len(prompt) - len(segments[-1])  # the tail that mlx-lm found
    if stable is not None and 0 < stable < len(prompt) - 1:  # the last token is a segment anyway
        ends.setdefault(stable, "user")
    places = [0, *sorted(ends), len(prompt)]
    parts = [prompt[begin:end] for begin, end in itertools.pairwise(places)]
    return parts, [*(ends[end] for end in sorted(ends)), "assistant"]


def stable_prefix(
    render: Callable[[list[dict[str, Any]]], Sequence[int]], messages: Sequence[dict[str, Any]], prompt: Sequence[int]
) -> int | None:
    """Count of a prompt's first tokens that it shares with the conversation's next turn; None if it cannot be rendered.

    `render` gives the tokens of messages. The next turn is the same messages, an answer and another question.
    """
    try:
        following = render([*messages, *NEXT_TURN])
    except Exception:  # a template may refuse any sequence of messages
        return None
    return common_prefix(np.asarray(prompt), np.asarray(following))
