"""Options that several commands share: the model, the evaluation texts, and the knobs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError, KnobError
from engine.knobs import IO_MODES, PREFETCH, REMOVED, WORDS, Knobs, removed
from engine.system.shipped import EVALUATION_TEXTS, KIMI_MINI

VALUES = {"io_mode": IO_MODES, "prefetch": PREFETCH}  # knobs whose value is one of some words


def add_model(parser: argparse.ArgumentParser, *, positional: bool = False, text: str = "checkpoint folder") -> None:
    """`--model`. With `positional`, the folder is also accepted as an argument without the option, as earlier versions had
    it."""
    parser.add_argument("--model", type=Path, metavar="DIR", help=f"{text} (default: kimi_mini)")
    if positional:
        parser.add_argument("path", type=Path, nargs="?", help=argparse.SUPPRESS)


def model_of(args: argparse.Namespace) -> Path:
    """The checkpoint's folder. Raises `HeadraceError` if it is given twice."""
    path = getattr(args, "path", None)
    if path is not None and args.model is not None:
        raise HeadraceError(f"--model {args.model} and {path} are two checkpoints; give one, with --model")
    return path or args.model or KIMI_MINI


def add_eval_texts(parser: argparse.ArgumentParser) -> None:
    """`--eval-texts`; `--judge` and `--text` are the names of earlier versions."""
    text = "evaluation texts: YAML, or any text file (default: headrace_v1.yaml)"
    parser.add_argument("--eval-texts", type=Path, metavar="FILE", default=EVALUATION_TEXTS, help=text)
    parser.add_argument("--judge", "--text", dest="eval_texts", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_knobs(parser: argparse.ArgumentParser, names: Collection[str] | None = None) -> None:
    """Every knob as an option, or only those named."""
    group = parser.add_argument_group("knobs")
    for f in dataclasses.fields(Knobs):
        if names is not None and f.name not in names:
            continue
        option, text = f"--{f.name.replace('_', '-')}", f.metadata["text"]
        if isinstance(f.default, bool):
            group.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
            continue
        words = WORDS.get(f.name)
        kind = number_or(words) if words else {"str": str, "int": int, "float": float}[str(f.type).split(" |")[0]]
        default = "" if f.default is None else f" (default: {f.default if kind is str else format(f.default, 'g')})"
        metavar = f"{{{','.join(VALUES[f.name])}}}" if f.name in VALUES else "FILE" if kind is str else "N"
        group.add_argument(option, type=kind, metavar=metavar, help=text + default)
    if names is None:
        for name in (name for name in REMOVED if "=" not in name):
            parser.add_argument(f"--{name.replace('_', '-')}", nargs="?", action=_Refused, help=argparse.SUPPRESS)


class _Refused(argparse.Action):
    """The option of a removed knob: raises `KnobError` with the reason of its removal."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        raise KnobError(removed(self.dest))


def knobs_of(args: argparse.Namespace) -> Knobs:
    """The knobs of a command line. Raises `KnobError`."""
    return Knobs(**knobs_given(args))


def knobs_given(args: argparse.Namespace) -> dict[str, Any]:
    """The knobs that the command line names, with their values."""
    return {name: value for name in Knobs.names() if (value := getattr(args, name, None)) is not None}


def number_or(words: dict[str, int]) -> Callable[[str], int]:
    """An option's type that takes a whole number or one of `words`."""

    def number(text: str) -> int:
        return words[text] if text in words else int(text)

    return number


def positive(text: str) -> int:
    """An option's type that takes a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def refuse_ignored(command: str, names: Sequence[str], why: str) -> None:
    """Raise `HeadraceError` for the first of the options that a command would ignore."""
    if names:
        raise HeadraceError(f"--{names[0].replace('_', '-')} has no effect: {command} {why}; leave it out")
