"""Stop strings on text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.serve.compute.stop import TextStop

END = 99


class Letters:
    """A detokenizer whose tokens are indices of words."""

    def __init__(self, words: list[str]) -> None:
        self._words, self.last_segment = words, ""

    def add_token(self, token: int) -> None:
        self.last_segment = self._words[token]

    def finalize(self) -> None:
        self.last_segment = ""


def run(words: list[str], stops: list[str], *, end: bool = False) -> tuple[str, bool, int]:
    """The text, whether a stop string matched, and the number of tokens."""
    tokenizer: Any = SimpleNamespace(eos_token_ids={END}, detokenizer=Letters(words))
    stop, text, count = TextStop(tokenizer, stops), "", 0
    for token in [*range(len(words)), *([END] if end else [])]:
        count += 1
        ended = stop.matcher().advance(token)
        text += stop.text()
        if ended:
            break
    return text + stop.finish(), stop.matched, count


@pytest.mark.parametrize(
    ("words", "stops", "text", "matched", "count"),
    [
        (["the ", "result", " is"], ["result"], "the ", True, 2),
        (["the re", "su", "lts is", "x"], ["result"], "the ", True, 3),
        (["the re", "su", "me"], ["result"], "the resume", False, 3),
        (["a", "re"], ["result"], "are", False, 2),
        (["aab", "aac"], ["aac", "b"], "aa", True, 1),
        (["a", "b"], [], "ab", False, 2),
        (["ababc"], ["abc"], "ab", True, 1),
        (["é", "\n\n"], ["\n"], "é", True, 2),
    ],
)
def test_text_up_to_the_first_stop_string(words: list[str], stops: list[str], text: str, matched: bool, count: int) -> None:
    assert run(words, stops) == (text, matched, count)


def test_an_end_of_text_releases_what_was_withheld() -> None:
    assert run(["the re", "su"], ["result"], end=True) == ("the resu", False, 3)
