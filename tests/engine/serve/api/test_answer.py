"""Pieces of an answer: reasoning, tool calls and log-probabilities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mlx_lm.generate import TextStateMachine
from mlx_lm.server import Response

from engine.serve.api.answer import LEAST_LOGPROB, Answer, as_text_logprobs

EDGES = {
    "normal": [("<think>", "reasoning"), ("<tool>", "tool")],
    "reasoning": [("</think>", "normal")],
    "tool": [("</tool>", "normal")],
}


class Words:
    """Stands for `TextStop`: each token is a word."""

    matched = False

    def __init__(self, words: list[str], rest: str = "") -> None:
        self._words = iter(words)
        self._rest = rest

    def text(self) -> str:
        return next(self._words)

    def finish(self) -> str:
        return self._rest


def answer(words: list[str], finish: str = "stop", rest: str = "") -> tuple[Answer, list[Any]]:
    texts = SimpleNamespace(stop=Words(words, rest), machine=TextStateMachine(EDGES))
    context: Any = SimpleNamespace(text_sm=texts, initial_state="normal")
    one = Answer(context, SimpleNamespace(decode=lambda ids: f"t{ids[0]}"), logprobs=True)
    last = len(words) - 1
    return one, [one.add(Response("", n, -1.0, finish if n == last else None, ())) for n in range(len(words))]


def test_reasoning_and_tool_calls_are_told_apart_from_text() -> None:
    one, pieces = answer(["<thi", "nk>hm", "</think>", "yes <to", "ol>{}", "</tool>", ""])
    assert "".join(p.reasoning for p in pieces) == "hm" and "".join(p.text for p in pieces) == "yes "
    assert [call for p in pieces for call in p.tool_calls] == ["{}"] and one.finish_reason == "tool_calls"


def test_a_call_cut_off_is_still_one_and_an_open_marker_is_text() -> None:
    one, pieces = answer(["<tool>{", "}"], "length")
    assert pieces[-1].tool_calls == ["{}"] and one.finish_reason == "length"
    _, pieces = answer(["a <", "thi"], "length", rest="n")
    assert "".join(p.text for p in pieces) == "a <thin"


def test_an_end_of_text_token_has_no_logprob_and_minus_infinity_a_number() -> None:
    one, pieces = answer(["a", ""])
    assert [len(p.logprobs) for p in pieces] == [1, 0] and pieces[0].logprobs[0]["bytes"] == list(b"t0")
    assert one._one(3, float("-inf"))["logprob"] == LEAST_LOGPROB


def test_offsets_of_a_completion() -> None:
    entries = [{"token": text, "logprob": -1.0, "top_logprobs": []} for text in ("ab", "c")]
    assert as_text_logprobs(entries, 5)["text_offset"] == [5, 7]
