"""Requests: what is accepted, and what is refused with which field."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from engine.serve.api.request import Served, parse_request
from engine.serve.errors import RequestError
from engine.serve.options import ServeOptions

SERVED = Served("tiny", 256, has_template=True, has_tools=False, options=ServeOptions(temperature=0.5, max_tokens=7))
TEXT: dict[str, Any] = {"prompt": "a"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 256]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "\udfff"}, "prompt"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e999}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "b"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 6}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"seed": 1 << 70}, "seed"),
        ({"temprature": 1}, "temprature"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
    ],
)
def test_wrong_completions(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as e:
        parse_request({**TEXT, **fields}, SERVED, chat=False)
    assert e.value.status == 400 and e.value.param == param and len(str(e.value)) < 300


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "a"}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": []}, "functions"),
    ],
)
def test_wrong_chats(fields: dict[str, Any], param: str) -> None:
    body = {**CHAT, **fields}
    with pytest.raises(RequestError) as e:
        parse_request(body, SERVED, chat=True)
    assert e.value.status == 400 and e.value.param == param


def test_values_defaults_and_names() -> None:
    parsed = parse_request(
        {**TEXT, "stop": "x", "user": "me", "top_k": 999, "seed": -1, "max_tokens": None}, SERVED, chat=False
    )
    assert parsed.args.stop_words == ["x"] and parsed.args.sampling.temperature == 0.5 and parsed.max_tokens is None
    assert parsed.args.sampling.top_k == 0 and parsed.args.seed == (1 << 64) - 1
    chat = parse_request(
        {**CHAT, "model": "tiny", "max_completion_tokens": 3, "max_tokens": 9, "reasoning_effort": "low"}, SERVED, chat=True
    )
    assert chat.max_tokens == 3 and chat.args.chat_template_kwargs == {"reasoning_effort": "low"}
    with pytest.raises(RequestError, match="does not exist; this server has tiny") as e:
        parse_request({**TEXT, "model": "../../etc"}, SERVED, chat=False)
    assert e.value.status == 404


def test_random_bodies_are_refused_or_parsed_never_an_exception() -> None:
    rng = random.Random(0)
    values = [
        None,
        True,
        -1,
        3,
        1.5,
        "a",
        "",
        [],
        ["a"],
        [[1]],
        {},
        {"type": "text"},
        {"1": 2},
        [{"role": "user"}],
        1e308,
        1 << 80,
    ]
    names = ["prompt", "messages", "model", "stream", "stop", "n", "seed", "logprobs", "logit_bias", "stream_options"]
    for _ in range(2000):
        body = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, 6))}
        with contextlib.suppress(RequestError):
            parse_request(body, SERVED, chat=rng.random() < 0.5)
