"""Chat: the command `chat`, turns with a model in a terminal or through a pipe."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from engine.errors import HeadraceError, did_you_mean
from engine.knobs import GB

from .arguments.opening import add_trust_code, load_with_tokenizer
from .arguments.options import add_knobs, add_model, add_sampling, add_setting, knobs_of, model_of, sampling_of
from .text import add_template, finish_note, refuse_not_utf8, show, stop_on_interrupt

if TYPE_CHECKING:
    from engine.generation.conversation import Conversation

MAX_TOKENS = 512
COMMANDS = {
    "/help": "list these commands",
    "/reset": "start a new conversation",
    "/system TEXT": "start a new conversation with this system message; without TEXT, with none",
    "/exit": "end the chat, as Ctrl-D does",
}
NAMES = [name.split()[0] for name in COMMANDS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `chat`."""
    add_model(parser)
    add_trust_code(parser)
    add_template(parser)
    add_sampling(parser, MAX_TOKENS)
    add_setting(parser)
    add_knobs(parser, samples=True)


def chat(args: argparse.Namespace) -> int:
    """Converse with a model.

    A line is a message. Later turns reuse the prompt cache of those before. Answers go to standard output, and a status line
    after each goes to standard error. Ctrl-C ends an answer, Ctrl-D ends the chat, /help lists the commands. In a pipe,
    each line of standard input is a message, and the exit status is 2 if one was refused.
    """
    from engine.generation.conversation import Conversation
    from engine.generation.prompts import template_note

    sampling, knobs, model = sampling_of(args), knobs_of(args), model_of(args)
    with load_with_tokenizer(args, model, knobs, template=True) as engine:
        name = engine.checkpoint.name
        conversation = Conversation(
            engine.forward,
            engine.tokenizer,
            sampling,
            limit=engine.context_limit,
            system=args.system_prompt,
            template_args=args.chat_template_args,
        )
        if note := template_note(engine.tokenizer, name):
            _say(f"note: {note}")
        if sys.stdin.isatty():
            _say(f"{name}, {engine.mode}; /help lists the commands, Ctrl-D ends the chat")
        return _converse(conversation)


def _converse(conversation: Conversation) -> int:
    status = 0
    for line in _lines():
        try:
            if line.startswith("/") and line.split()[0][1:].isalpha():
                if _command(conversation, line):
                    break
            elif line.strip():
                _answer(conversation, line)
        except HeadraceError as e:
            _say(f"error: {e}")
            status = 0 if sys.stdin.isatty() else 2
    return status


def _command(conversation: Conversation, line: str) -> bool:
    """Run a command of the chat; return whether it ends the chat."""
    name, _, text = line.strip().partition(" ")
    if name == "/exit":
        return True
    if name == "/help":
        for command, meaning in COMMANDS.items():
            _say(f"{command:14}{meaning}", indent=14)
    elif name == "/reset":
        system = next((m["content"] for m in conversation.messages if m["role"] == "system"), None)
        conversation.reset(system)
        _say("new conversation")
    elif name == "/system":
        conversation.reset(text.strip() or None)
        _say("new conversation with this system message" if text.strip() else "new conversation without a system message")
    else:
        raise HeadraceError(f"{name} is not a command; {did_you_mean(name, NAMES)}")
    return False


def _answer(conversation: Conversation, line: str) -> None:
    refuse_not_utf8(line, "the message")
    before = len(conversation.messages)
    with stop_on_interrupt() as interrupt:
        try:
            for piece in conversation.ask(line, interrupt.is_set):
                show(piece)
        finally:
            show("\n")
    _say(f"[{status_line(conversation)}]")
    if len(conversation.messages) == before:
        _say("interrupted before the first token; the message is not part of the conversation")


def status_line(conversation: Conversation) -> str:
    """The figures of the last answer."""
    answer = conversation.answer
    assert answer is not None
    made, speed, first = len(answer.tokens), answer.tok_s, answer.first_token_s
    parts = [
        f"{made} token{'' if made == 1 else 's'}",
        None if speed is None else f"{speed:.1f} tok/s",
        None if first is None else f"first token {first:.2f} s",
        "all resident" if answer.hit_rate is None else f"hit rate {answer.hit_rate:.3f}",
        f"{answer.bytes_read / GB:.4f} GB read",
        f"{answer.reused} of {len(answer.prompt)} prompt tokens reused",
        finish_note(answer, conversation.sampling),
    ]
    return ", ".join(p for p in parts if p)


def _lines() -> Iterator[str]:
    """The lines of standard input, with a prompt in a terminal."""
    if not sys.stdin.isatty():
        for number, raw in enumerate(sys.stdin.buffer, 1):
            try:
                yield raw.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as e:
                raise HeadraceError(f"line {number} of standard input is not UTF-8; convert it to UTF-8") from e
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a line to edit and its history
    while True:
        try:
            if not sys.stdout.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            yield input("> " if sys.stdout.isatty() else "")
        except EOFError:
            _say("")
            return
        except KeyboardInterrupt:
            _say("\nCtrl-D or /exit ends the chat")


def _say(text: str, indent: int = 0) -> None:
    """Print a line on standard error, wrapped to the terminal's width."""
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else 10**6
    lines = text.split("\n")
    print(
        "\n".join(textwrap.fill(line, width, subsequent_indent=" " * indent) for line in lines), file=sys.stderr, flush=True
    )
