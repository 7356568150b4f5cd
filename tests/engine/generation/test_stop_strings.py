"""Stop strings: the same text, however it is divided, and that of mlx-lm's own text matching."""

from __future__ import annotations

import random

import pytest
from mlx_lm.generate import TextStateMachine

from engine.generation.stop_strings import StopStrings


def through(strings: list[str], pieces: list[str]) -> tuple[str, str | None, list[str]]:
    """The text, the stop string that was found, and the pieces that came out."""
    stop = StopStrings(strings)
    out = [stop.feed(piece) for piece in pieces]
    return "".join(out) + stop.flush(), stop.found, out


def cut(strings: list[str], text: str) -> tuple[str, str | None]:
    """The definition: the first end of a stop string, and the longest one there."""
    for end in range(1, len(text) + 1):
        if found := [s for s in strings if text[:end].endswith(s)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_a_random_text_in_random_pieces_is_cut_where_the_definition_says() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        strings = ["".join(rng.choices("ab\n", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        text = "".join(rng.choices("ab\nc", k=rng.randint(0, 20)))
        pieces, at = [], 0
        while at < len(text):
            size = rng.randint(0, 4)
            pieces.append(text[at : at + size])
            at += size
        made, found, out = through(strings, pieces)
        assert (made, found) == cut(strings, text), (strings, text, pieces)
        machine = TextStateMachine({"normal": [(s, None) for s in strings]})
        state, segments = machine.split(machine.make_state(), text)
        assert made == "".join(t for _, t in segments) + ("" if found else state[3])
        if found is None:  # nothing is held back that cannot begin a stop string
            held = text[len("".join(out)) :]
            assert held == "" or any(s.startswith(held) for s in strings)


@pytest.mark.parametrize(
    ("strings", "pieces", "out"),
    [
        (["result"], ["the ", "res", "ult", " is"], ["the ", "", "", ""]),
        (["result"], ["the ", "res", "t"], ["the ", "", "rest"]),
        (["\n\n"], ["a\n", "b\n", "\n", "c"], ["a", "\nb", "", ""]),
        (["aab"], ["aa", "aa", "ac"], ["", "aa", "aaac"]),
        ([], ["a", "b"], ["a", "b"]),
    ],
)
def test_text_is_held_back_only_while_it_may_be_a_stop_string(strings: list[str], pieces: list[str], out: list[str]) -> None:
    assert through(strings, pieces)[2] == out
