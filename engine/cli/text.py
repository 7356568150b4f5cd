"""Text: the command `generate`, which continues one prompt."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import HeadraceError
from engine.generation.sampling import Sampling
from engine.knobs import GB
from engine.system.strict_json import from_json

from .arguments.opening import add_trust_code, load_with_tokenizer
from .arguments.options import add_knobs, add_model, add_sampling, add_setting, knobs_of, model_of, sampling_of

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.generation.generation import Generation

INTERRUPTED = 130  # exit status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate`."""
    add_model(parser)
    add_trust_code(parser)
    text = "the text to answer or continue; - reads it from standard input, as a missing --prompt does in a pipe"
    parser.add_argument("--prompt", "-p", metavar="TEXT", help=text)
    add_template(parser)
    text = "continue the text as it is, without the checkpoint's chat template"
    parser.add_argument("--ignore-chat-template", action="store_true", help=text)
    text = "write the run's routing to this Parquet file"
    parser.add_argument("--trace-out", type=Path, metavar="FILE", help=text)
    add_sampling(parser)
    add_setting(parser)
    add_knobs(parser, samples=True)


def add_template(parser: argparse.ArgumentParser) -> None:
    """The options of the chat template."""
    parser.add_argument("--system-prompt", metavar="TEXT", help="system message of the chat template")
    text = "arguments of the chat template, as JSON: '{\"enable_thinking\": false}'"
    parser.add_argument("--chat-template-args", type=json_object, default={}, metavar="JSON", help=text)
    earlier = parser.add_argument("--chat-template-config", type=json_object, default=argparse.SUPPRESS)  # mlx_lm.generate
    earlier.dest, earlier.help = "chat_template_args", argparse.SUPPRESS


def generate(args: argparse.Namespace) -> int:
    """Print generated text, then speed and memory.

    The prompt is a message to the model if the checkpoint has a chat template, otherwise a text to continue. The text
    goes to standard output, the figures go to standard error. Ctrl-C ends the text.
    """
    from engine.model.backend import peak_bytes

    prompt, sampling, knobs = prompt_of(args.prompt), sampling_of(args), knobs_of(args)
    with load_with_tokenizer(args, model_of(args), knobs, template=not args.ignore_chat_template) as engine:
        ids = _prompt_ids(engine, prompt, args)
        with nullcontext() if args.trace_out is None else engine.trace(args.trace_out), stop_on_interrupt() as interrupt:
            generation = engine.generation(ids, sampling, stopped=interrupt.is_set)
            for piece in generation:
                show(piece)
        show("\n")
        _print_figures(engine, generation)
        print(f"peak memory: {peak_bytes() / GB:.3f} GB", file=sys.stderr)
        print(f"mode:        {engine.mode}", file=sys.stderr)
    return INTERRUPTED if generation.finish == "interrupted" else 0


def prompt_of(given: str | None) -> str:
    """The prompt of a command line, or of standard input. Raises `HeadraceError` without one."""
    if given is not None and given != "-":
        refuse_not_utf8(given, "--prompt")
        return _not_empty(given)
    if given is None and sys.stdin.isatty():
        raise HeadraceError("generate needs a prompt; write --prompt TEXT, or pipe a text into standard input")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as e:
        raise HeadraceError(f"the prompt on standard input is not UTF-8 (byte {e.start}); convert it to UTF-8") from e
    return _not_empty(text.removesuffix("\n").removesuffix("\r"))  # without the end of line that echo writes


def refuse_not_utf8(text: str, name: str) -> None:
    """Raise `HeadraceError` for a text that came from bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise HeadraceError(f"{name} is not UTF-8; write it in UTF-8") from e


def show(text: str) -> None:
    """Print a piece of a text at once. A character that the output's encoding lacks becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def _not_empty(prompt: str) -> str:
    if not prompt:
        raise HeadraceError("the prompt is empty; give at least one character")
    return prompt


def json_object(text: str) -> dict[str, Any]:
    """An option's type that takes a JSON object."""
    try:
        value = from_json(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text} is not JSON ({e})") from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text} is not a JSON object; write {{"name": value}}')
    return value


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Set the event at the first Ctrl-C inside, so that the token in progress is finished; the second raises
    `KeyboardInterrupt`."""
    event = threading.Event()

    def interrupt(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def finish_note(generation: Generation, sampling: Sampling) -> str | None:
    """Why a text ended early; None if the model ended it."""
    return {
        "stop": "ended at a stop string",
        "length": f"ended after --max-tokens {sampling.max_tokens}",
        "context": "ended: the model's context is full",
        "interrupted": "interrupted",
    }.get(generation.finish or "interrupted")


def _prompt_ids(engine: Engine, prompt: str, args: argparse.Namespace) -> list[int]:
    from engine.generation.prompts import render

    if engine.tokenizer.has_chat_template and not args.ignore_chat_template:
        system = [] if args.system_prompt is None else [{"role": "system", "content": args.system_prompt}]
        return render(engine.tokenizer, [*system, {"role": "user", "content": prompt}], **args.chat_template_args)
    name = "--system-prompt" if args.system_prompt is not None else "--chat-template-args"
    if args.system_prompt is not None or args.chat_template_args:
        why = "--ignore-chat-template is given" if args.ignore_chat_template else "the checkpoint has no chat template"
        raise HeadraceError(f"{name} has no effect: {why}; leave it out, or put its text into the prompt")
    return engine.encode(prompt)


def _print_figures(engine: Engine, generation: Generation) -> None:
    stats, made = engine.stats, len(generation.tokens)
    first, speed, note = generation.first_token_s, generation.tok_s, finish_note(generation, generation.sampling)
    prompt = len(generation.prompt)
    lines = {
        "prompt": f"{prompt} tokens" + ("" if first is None else f", {prompt / first:.1f} tok/s, first token {first:.2f} s"),
        "decode": f"{made} tokens" + ("" if speed is None else f", {speed:.1f} tok/s") + (f", {note}" if note else ""),
        "hit rate": "all resident" if stats.hit_rate is None else f"{stats.hit_rate:.3f}",
        "read": f"{stats.bytes_read / GB:.4f} GB in {stats.reads} reads, {stats.io_ms:.0f} ms waited",
    }
    print(file=sys.stderr)
    for name, text in lines.items():
        print(f"{name + ':':12} {text}", file=sys.stderr)
