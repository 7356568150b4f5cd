"""Prompts: messages as token ids, through the checkpoint's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import HeadraceError, first_line

Message = Mapping[str, Any]

RESERVED = ("conversation", "messages", "return_dict", "return_tensors", "tokenize", "tools")  # set by `render` itself
FALLBACK_STOP = "\nUSER:"  # where a model without a chat template begins the user's next turn itself
_ASSISTANT = "ASSISTANT:"


def render(tokenizer: Any, messages: Sequence[Message], tools: Any = None, **template_kwargs: Any) -> list[int]:
    """Return the token ids of a conversation, up to where the assistant's answer begins.

    `tokenizer` is mlx-lm's `TokenizerWrapper`. `template_kwargs` are passed to the chat template, such as
    `enable_thinking=False`; `add_generation_prompt=False` ends with the last message. A checkpoint without a template gets
    the form of mlx-lm's server, `USER: ... ASSISTANT:`. Raises `HeadraceError` if the template refuses the messages.
    """
    if reserved := sorted(set(template_kwargs) & set(RESERVED)):
        raise HeadraceError(f"the chat template's argument {reserved[0]} is set by headrace; leave it out")
    if not tokenizer.has_chat_template:
        return list(tokenizer.encode(_without_template(messages, **template_kwargs)))
    arguments = {"add_generation_prompt": True, **template_kwargs}
    try:
        ids = tokenizer.apply_chat_template(list(messages), tools=tools, **arguments)
    except Exception as e:  # a template is a program of the checkpoint and raises what it likes
        roles = ", ".join(str(m.get("role")) for m in messages[:4]) + (", ..." if len(messages) > 4 else "")
        raise HeadraceError(
            f"the chat template refuses these messages ({first_line(e)}; roles: {roles}); change the messages or the "
            "template's arguments"
        ) from e
    return [int(i) for i in ids]


def split_answer(tokenizer: Any, prompt: Sequence[int], text: str) -> tuple[str, str]:
    """Return an answer's content and its reasoning, without the marks between them, by mlx-lm's rules.

    A template takes them apart: most drop the reasoning of earlier turns, and some refuse its marks within the content. An
    answer with tool calls stays as it is.
    """
    from mlx_lm.generate import make_text_state_machine

    opened = tokenizer.has_thinking and tokenizer.rfind_think_start(prompt) > tokenizer.rfind_think_end(prompt)
    begin = tokenizer.response_initial_state or ("reasoning" if opened else "normal")
    machine = make_text_state_machine(tokenizer)
    state, segments = machine.split(machine.make_state(begin), text)
    _, held, at = machine.flush(state)
    segments.append((at, held))
    if any(name not in ("normal", "reasoning") for name, part in segments if part):
        return text, ""
    content, reasoning = ("".join(part for name, part in segments if name == wanted) for wanted in ("normal", "reasoning"))
    return (content.lstrip("\n"), reasoning.strip("\n")) if reasoning else (text, "")


def template_note(tokenizer: Any, name: str) -> str | None:
    """A line that says what replaces the chat template of checkpoint `name`; None if it has one."""
    if tokenizer.has_chat_template:
        return None
    return f"{name} has no chat template; turns are written as mlx-lm's server does: USER: ... ASSISTANT: ..."


def refuse_too_long(tokens: int, limit: int | None) -> None:
    """Raise `HeadraceError` for a prompt that leaves no room for one token of an answer."""
    if limit is not None and tokens >= limit:
        raise HeadraceError(
            f"the prompt has {tokens} tokens; prompt and answer together have at most {limit} in this model "
            "(max_position_embeddings); shorten the prompt, or start a new conversation"
        )


def _without_template(messages: Sequence[Message], *, add_generation_prompt: bool = True, **_: Any) -> str:
    from mlx_lm.server import convert_chat

    text = convert_chat([dict(m) for m in messages])
    return text if add_generation_prompt else text.removesuffix(_ASSISTANT)
