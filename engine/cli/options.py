"""Options: every knob as an option of a command, and one line for those that a command would ignore."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from engine.errors import HeadraceError, KnobError
from engine.knobs import REMOVED, WORDS, Knobs, removed


def add_knobs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("knobs")
    for f in dataclasses.fields(Knobs):
        if isinstance(f.default, bool):
            option = f"--{f.name.replace('_', '-')}"
            group.add_argument(option, action=argparse.BooleanOptionalAction, help=f.metadata["text"])
            continue
        words = WORDS.get(f.name)
        kind = number_or(words) if words else {"str": str, "int": int, "float": float}[str(f.type).split(" |")[0]]
        default = (
            "" if f.default is None else f" (default: {f.default:g})" if kind is not str else f" (default: {f.default})"
        )
        group.add_argument(f"--{f.name.replace('_', '-')}", type=kind, metavar="N", help=f.metadata["text"] + default)
    for name in (name for name in REMOVED if "=" not in name):
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="?", action=_Refused, help=argparse.SUPPRESS)


class _Refused(argparse.Action):
    """The option of a removed knob: raises `KnobError` with the line that says so."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        raise KnobError(removed(self.dest))


def knobs_of(args: argparse.Namespace) -> Knobs:
    return Knobs(**knobs_given(args))


def knobs_given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in Knobs.names() if getattr(args, name) is not None}


def number_or(words: dict[str, int]) -> Callable[[str], int]:
    """An option's type that takes a whole number or one of `words`."""

    def number(text: str) -> int:
        return words[text] if text in words else int(text)

    return number


def refuse_ignored(command: str, names: list[str], why: str) -> None:
    """One line for options that a command would ignore."""
    if names:
        raise HeadraceError(f"--{names[0].replace('_', '-')} has no effect: {command} {why}; leave it out")
