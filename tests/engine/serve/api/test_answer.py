"""Pieces of an answer: reasoning, tool calls and log-probabilities."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.generate import TextStateMachine
from mlx_lm.server import Response

from engine.serve.api.answer import LEAST_LOGPROB, Answer, as_text_logprobs

CALL = '{"name": "f", "arguments": {"a": 1}}'
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
    context: Any = SimpleNamespace(text_sm=texts, initial_state="normal", tool_parser=lambda text, _: json.loads(text))
    one = Answer(context, SimpleNamespace(decode=lambda ids: f"t{ids[0]}"), None, stream=True, logprobs=True)
    last = len(words) - 1
    return one, [one.add(Response("", n, -1.0, finish if n == last else None, ())) for n in range(len(words))]


def test_reasoning_and_tool_calls_are_told_apart_from_text() -> None:
    words = ["<thi", "nk>hm", "</think>", "yes <to", f"ol>{CALL}", "</tool>", ""]
    one, pieces = answer(words)
    assert "".join(p.reasoning for p in pieces) == "hm" and "".join(p.text for p in pieces) == "yes "
    (call,) = [call for p in pieces for call in p.tool_calls]
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'} and call["index"] == 0
    assert one.finish_reason == "tool_calls"


def test_a_call_cut_off_is_still_one_and_an_open_marker_is_text() -> None:
    one, pieces = answer([f"<tool>{CALL[:9]}", CALL[9:]], "length")
    assert pieces[-1].tool_calls and one.finish_reason == "length"
    _, pieces = answer(["a <", "thi"], "length", rest="n")
    assert "".join(p.text for p in pieces) == "a <thin"


@pytest.mark.parametrize("call", ["3", "{}", "[1]", '{"name": "f"', "f()"])
def test_a_call_that_the_parser_does_not_take_is_text(call: str) -> None:
    one, pieces = answer([f"<tool>{call}", "</tool>", ""])
    assert "".join(p.text for p in pieces) == call and one.finish_reason == "stop"
    assert not any(p.tool_calls for p in pieces)


def test_an_end_of_text_token_has_no_logprob_and_minus_infinity_a_number() -> None:
    one, pieces = answer(["a", ""])
    assert [len(p.logprobs) for p in pieces] == [1, 0] and pieces[0].logprobs[0]["bytes"] == list(b"t0")
    assert one._one(3, float("-inf"))["logprob"] == LEAST_LOGPROB


def test_offsets_of_a_completion() -> None:
    entries = [{"token": text, "logprob": -1.0, "top_logprobs": []} for text in ("ab", "c")]
    assert as_text_logprobs(entries, 5)["text_offset"] == [5, 7]
