"""Messages and tools of chat requests."""

from __future__ import annotations

from typing import Any

import pytest

from engine.serve.api.fields import Fields
from engine.serve.api.messages import check_messages, check_tools
from engine.serve.errors import RequestError

USER = {"role": "user", "content": "a"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (["text"], "messages[0]"),
        ([USER, {"content": "a"}], "messages[1].role"),
        ([{"role": "robot", "content": "a"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "user", "content": "a", "name": 3}], "messages[0].name"),
    ],
)
def test_wrong_messages(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as e:
        check_messages(messages, has_template=True)
    assert e.value.status == 400 and e.value.param == param


def test_messages_become_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [{"role": "developer", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    clean = check_messages([*given, {"role": "tool", "tool_call_id": "1", "content": "3"}], has_template=True)
    assert clean[0] == {"role": "system", "content": "ab"} and clean[1]["tool_calls"][0] == CALL
    assert clean[2]["tool_call_id"] == "1"
    with pytest.raises(RequestError, match="needs a chat template"):
        check_messages(given, has_template=False)


def test_tools_and_their_choice() -> None:
    assert check_tools(Fields({})) is None and check_tools(Fields({"tools": [TOOL], "tool_choice": "none"})) is None
    assert check_tools(Fields({"tools": [TOOL], "tool_choice": "auto"})) == [TOOL]
    for body in (
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [{}]},
        {"tools": [{"type": "function"}]},
        {"tools": "f"},
    ):
        with pytest.raises(RequestError):
            check_tools(Fields(body))
