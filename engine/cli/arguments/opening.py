"""Opening: the tokenizer of a command's checkpoint, opened before its model, and the option `--trust-code`.

A wrong tokenizer thus ends a command in a second, not after gigabytes of weights were read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.knobs import Knobs


def add_trust_code(parser: argparse.ArgumentParser) -> None:
    """`--trust-code`, of every command that opens a tokenizer."""
    text = "run the checkpoint's own Python code if its tokenizer needs it; read that code first (default: never)"
    parser.add_argument("--trust-code", action="store_true", help=text)


def opened_tokenizer(args: argparse.Namespace, model: Path, *, template: bool = False, tools: bool = False) -> Any:
    """mlx-lm's tokenizer of the checkpoint `model`, with a usable chat template if `template` is true. Prints which code it
    runs and, with `tools`, what differs for requests with tools. Raises `CheckpointError`."""
    from engine.tokenizer.open import check_template, code_note, open_tokenizer

    opened = open_tokenizer(model, trust_code=args.trust_code)
    note = code_note(opened)
    if args.trust_code and note is None:
        note = "--trust-code has no effect: this tokenizer opens without code of the checkpoint"
    for line in (note, opened.tools if tools else None):
        if line is not None:
            print(f"note: {line}", file=sys.stderr)
    if template:
        check_template(opened.tokenizer, model)
    return opened.tokenizer


def load_with_tokenizer(
    args: argparse.Namespace, model: Path, knobs: Knobs, *, template: bool, tools: bool = False
) -> Engine:
    """The engine of `load`, after its tokenizer. `args` has the option of `add_trust_code`."""
    tokenizer = opened_tokenizer(args, model, template=template, tools=tools)
    from engine.engine import load

    return load(model, knobs, trust_code=args.trust_code, tokenizer=tokenizer)
