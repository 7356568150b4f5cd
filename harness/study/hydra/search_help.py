"""Help of the search: the choices, the keys with their meanings, and the knobs, each wrapped to the terminal's width."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from typing import Any

from engine import Knobs
from harness.schema import Config

from .overrides import choices


def choices_text(config_dir: str | None = None) -> str:
    """A line for each group, with the names of its files."""
    return "\n".join(_entry(f"{group}:", ", ".join(names), 14) for group, names in choices(config_dir).items())


def keys_text() -> str:
    """A line for each key of the configuration, with its default and its meaning."""
    lines: list[str] = []
    for f in dataclasses.fields(Config):
        part = f.default_factory if isinstance(f.default_factory, type) else None
        if part is None or not dataclasses.is_dataclass(part):
            lines += _key(f.name, f)
            continue
        for inner in dataclasses.fields(part):
            lines += _key(f"{f.name}.{inner.name}", inner)
    return "\n".join(lines)


def knobs_text() -> str:
    """A line for each knob, from the engine's own table."""
    return "\n".join(_entry(f.name, f.metadata["text"], 18) for f in dataclasses.fields(Knobs))


def _key(name: str, f: dataclasses.Field[Any]) -> list[str]:
    text = f.metadata.get("help", "")
    return [_entry(f"{name}{_default(f)}", text, 38)]


def _default(f: dataclasses.Field[Any]) -> str:
    value = f.default
    if value is dataclasses.MISSING or value == "???":
        return ""
    return f"={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def _entry(name: str, text: str, indent: int) -> str:
    """`name` and a wrapped text beside it, at `indent`; a longer name has a line of its own."""
    width = max(shutil.get_terminal_size().columns, 60)
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False) or [""]
    first = f"{name:{indent - 1}} {lines.pop(0)}" if len(name) < indent else name
    return "\n".join([first.rstrip(), *(" " * indent + line for line in lines)])
