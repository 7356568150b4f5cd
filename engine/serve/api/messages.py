"""Messages and tools of a chat request: checked, and in the form that chat templates expect."""

from __future__ import annotations

from typing import Any

from engine.system.strict_json import from_json

from .fields import Fields, checked, unsupported, wrong

ROLES = {"developer": "system", "function": "tool"}  # names of the OpenAI API that templates do not know
KNOWN_ROLES = ("system", "user", "assistant", "tool")


def check_messages(messages: Any, has_template: bool) -> list[dict[str, Any]]:
    """Copies of the messages, with text as content. Raises `RequestError` for anything else, images included."""
    if not messages:
        raise wrong("messages", "is empty; give at least one message")
    return [_message(f"messages[{i}]", message, has_template) for i, message in enumerate(messages)]


def _message(name: str, message: Any, has_template: bool) -> dict[str, Any]:
    message = checked(name, message, dict)
    given = checked(f"{name}.role", message.get("role"), str)
    role = ROLES.get(given, given)
    if role not in KNOWN_ROLES:
        raise wrong(f"{name}.role", f"is {given[:40]!r}; it must be one of {', '.join(KNOWN_ROLES)}")
    calls = message.get("tool_calls")
    content = _content(f"{name}.content", message.get("content"), optional=bool(calls) or role == "assistant")
    clean: dict[str, Any] = {"role": role, "content": content}
    if calls:
        if not has_template:
            raise wrong(f"{name}.tool_calls", "needs a chat template with tools; this model has none")
        clean["tool_calls"] = [
            _call(f"{name}.tool_calls[{i}]", call) for i, call in enumerate(checked(f"{name}.tool_calls", calls, list))
        ]
    for key in ("name", "tool_call_id", "reasoning", "reasoning_content"):
        if message.get(key) is not None:
            clean[key] = checked(f"{name}.{key}", message[key], str)
    return clean


def _content(name: str, content: Any, *, optional: bool) -> str:
    if content is None and optional:
        return ""
    if not isinstance(content, list):
        return str(checked(name, content, str))
    texts = []
    for i, part in enumerate(content):
        kind = checked(f"{name}[{i}]", part, dict).get("type")
        if kind not in ("text", "input_text"):
            raise unsupported(f"{name}[{i}]", f"is of type {str(kind)[:40]!r}; this server takes text only")
        texts.append(checked(f"{name}[{i}].text", part.get("text"), str))
    return "".join(texts)


def _call(name: str, call: Any) -> dict[str, Any]:
    call = checked(name, call, dict)
    function = checked(f"{name}.function", call.get("function"), dict)
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            from_json(arguments)
        except (ValueError, RecursionError):
            raise wrong(f"{name}.function.arguments", "is no JSON text") from None
    else:
        checked(f"{name}.function.arguments", arguments, dict)
    named = {"name": checked(f"{name}.function.name", function.get("name"), str), "arguments": arguments}
    return {"id": checked(f"{name}.id", call.get("id") or "", str), "type": "function", "function": named}


def check_tools(fields: Fields) -> list[dict[str, Any]] | None:
    """The tools that the template gets: None for `tool_choice` none. Raises `RequestError` for a forced choice."""
    tools = fields.get("tools", list, [])
    for i, tool in enumerate(tools):
        name = f"tools[{i}]"
        if checked(name, tool, dict).get("type") != "function":
            raise wrong(f"{name}.type", "must be function")
        checked(f"{name}.function.name", checked(f"{name}.function", tool.get("function"), dict).get("name"), str)
    choice = fields.body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", "cannot force a call on this server; use auto or none")
    return None if choice == "none" else tools or None
