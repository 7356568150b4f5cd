"""Prompts: the checkpoint's template, what replaces a missing one, and what a template refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from engine import HeadraceError
from engine.generation.prompts import refuse_too_long, render, template_note
from engine.system.shipped import KIMI_MINI

USER = {"role": "user", "content": "hi"}
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0].content }}"


def test_messages_go_through_the_checkpoints_template(chat_model: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(chat_model())
    assert tokenizer.decode(render(tokenizer, [USER])) == "[user]hi<eos>[assistant]"
    assert tokenizer.decode(render(tokenizer, [USER], add_generation_prompt=False)) == "[user]hi<eos>"
    assert template_note(tokenizer, "tiny") is None


def test_template_arguments_reach_the_template(chat_model: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(chat_model("qwen3_moe", "{{ mood }}: {{ messages[0].content }}"))
    assert tokenizer.decode(render(tokenizer, [USER], mood="calm")) == "calm: hi"


def test_a_checkpoint_without_a_template_gets_mlx_lms_form() -> None:
    tokenizer = load_tokenizer(KIMI_MINI)
    told = [USER, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]
    assert tokenizer.decode(render(tokenizer, told)) == "USER: hi\nASSISTANT: yes\nUSER: why?\nASSISTANT:"
    assert tokenizer.decode(render(tokenizer, told, add_generation_prompt=False)).endswith("USER: why?\n")
    assert template_note(tokenizer, "kimi_mini") == (
        "kimi_mini has no chat template; turns are written as mlx-lm's server does: USER: ... ASSISTANT: ..."
    )


@pytest.mark.parametrize(
    ("messages", "arguments", "message"),
    [
        ([{"role": "system", "content": "x"}, USER], {}, r"refuses these messages \(no system role; roles: system, user"),
        ([USER], {"tokenize": False}, "argument tokenize is set by headrace"),
        ([USER], {"continue_final_message": True}, "template refuses these messages"),
    ],
)  # fmt: skip
def test_what_a_template_refuses(
    chat_model: Callable[..., Path], messages: list[Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(HeadraceError, match=message) as refused:
        render(load_tokenizer(chat_model("qwen3_moe", STRICT)), messages, **arguments)
    assert "\n" not in str(refused.value)


def test_the_context_limit() -> None:
    refuse_too_long(511, 512)
    refuse_too_long(10**9, None)
    with pytest.raises(HeadraceError, match="the prompt has 512 tokens; prompt and answer together have at most 512"):
        refuse_too_long(512, 512)
