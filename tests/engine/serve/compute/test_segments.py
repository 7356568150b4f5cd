"""Segments: which places are worth a pass over the experts."""

from __future__ import annotations

import pytest

from engine.serve.compute.segments import split_prompt, stable_prefix

PROMPT, SEGMENTS, KINDS = [1, 2, 3, 4, 5, 6, 7], [[1, 2, 3], [4, 5], [6, 7]], ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("options", "segments", "kinds"),
    [
        ({"can_cut": True, "chunk": 2}, [PROMPT], ["user"]),
        ({"chunk": 3, "stable": 5}, SEGMENTS, KINDS),
        ({"chunk": 3}, SEGMENTS, KINDS),  # mlx-lm's own tail
        ({"chunk": 4, "stable": 4}, [[1, 2, 3, 4], [5, 6, 7]], ["user", "assistant"]),
        ({"chunk": 4, "stable": 6}, [PROMPT], ["assistant"]),  # the last token is computed by itself anyway
        ({"chunk": 4, "stable": 0}, [PROMPT], ["assistant"]),
        ({"chunk": 3, "stable": 3}, [[1, 2, 3], [4, 5, 6, 7]], ["system", "assistant"]),
    ],
)
def test_segments(options, segments, kinds):
    given = {"can_cut": False, "stable": None, **options}
    assert split_prompt(PROMPT, SEGMENTS, KINDS, **given) == (segments, kinds)


def test_plain_prompt_stays_whole():
    assert split_prompt([1, 2], [[1, 2]], ["assistant"], can_cut=False, chunk=8, stable=None) == ([[1, 2]], ["assistant"])


def test_stable_prefix_ends_where_the_next_turn_differs():
    def render(messages):
        return [ord(c) for m in messages for c in f"{m['role'][0]}:{m['content']};"]

    messages = [{"role": "user", "content": "hi"}]
    prompt = [*render(messages), *map(ord, "a:<think>")]
    assert stable_prefix(render, messages, prompt) == len("u:hi;a:")
    assert stable_prefix(lambda _: 1 / 0, messages, prompt) is None
