"""Answers: text, reasoning, tool calls and log-probabilities out of a request's tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.generate import TextStateMachine
from mlx_lm.server import GenerationContext, Response, ToolCallFormatter

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON does not have


@dataclass
class Piece:
    """A part of an answer. `logprobs`: one entry per token, in the form of the OpenAI API's chat completions."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.tool_calls)


class Answer:
    """Turns the tokens of one request into pieces. `finish_reason` is set by the last token."""

    def __init__(
        self, context: GenerationContext, tokenizer: Any, tools: list[Any] | None, *, stream: bool, logprobs: bool
    ) -> None:
        self.finish_reason: str | None = None
        self._stop = context.text_sm.stop  # type: ignore[attr-defined]
        self._state = context.text_sm.machine.make_state(context.initial_state)  # type: ignore[attr-defined]
        self._kind = context.initial_state
        self._tokenizer = tokenizer
        self._format = ToolCallFormatter(context.tool_parser, tools, stream)
        self._logprobs = logprobs
        self._call = ""
        self._called = False

    def add(self, response: Response) -> Piece:
        """The part of the answer that one token released; empty while its text may still become a marker."""
        piece = Piece()
        text = self._stop.text()
        self._sort(text, piece)
        ends = response.finish_reason == "stop" and not self._stop.matched
        if self._logprobs and not ends:  # an end-of-text token is no part of the text
            piece.logprobs.append(self._entry(response))
        if response.finish_reason is not None:
            self._sort(self._stop.finish(), piece)
            self._state, rest, kind = TextStateMachine.flush(self._state)
            self._collect(kind, rest, piece)
            if self._call:
                self._end_call(piece)
            self.finish_reason = (
                "tool_calls" if self._called and response.finish_reason == "stop" else response.finish_reason
            )
        return piece

    def _sort(self, text: str, piece: Piece) -> None:
        self._state, segments = TextStateMachine.split(self._state, text)
        for kind, part in segments:
            self._collect(kind, part, piece)

    def _collect(self, kind: str, text: str, piece: Piece) -> None:
        if self._kind == "tool" and kind != "tool":
            self._end_call(piece)
        self._kind = kind
        if kind == "reasoning":
            piece.reasoning += text
        elif kind == "tool":
            self._call += text
        elif kind == "normal":
            piece.text += text

    def _end_call(self, piece: Piece) -> None:
        """A call in the model's own format. What its parser does not take is text, as the model wrote it."""
        text, self._call = self._call, ""
        try:
            calls = self._format([text])
        except Exception:  # the parsers of mlx-lm raise anything for a call that is no object
            calls = []
        if calls:
            piece.tool_calls += calls
            self._called = True
        else:
            piece.text += text

    def _entry(self, response: Response) -> dict[str, Any]:
        top = sorted(response.top_tokens or (), key=lambda one: -one["logprob"])
        others = [self._one(one["id"], one["logprob"]) for one in top]
        return {**self._one(response.token, response.logprob), "top_logprobs": others}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        value = logprob if math.isfinite(logprob) else LEAST_LOGPROB
        return {"token": text, "logprob": max(LEAST_LOGPROB, value), "bytes": list(text.encode(errors="replace"))}


def as_chat_logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The field `logprobs` of a chat completion."""
    return {"content": entries, "refusal": None}


def as_text_logprobs(entries: list[dict[str, Any]], offset: int) -> dict[str, Any]:
    """The field `logprobs` of a completion; `offset` is the number of characters before the first token."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
        "text_offset": offsets,
    }
