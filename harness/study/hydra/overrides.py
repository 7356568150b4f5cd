"""Overrides of a command line: rewrites them for Hydra's grammar, and refuses in one line what it cannot read.

Hydra's grammar refuses some values that can mean one thing only. These are accepted as they are:

    model.path=/Volumes/Big SSD/x (4bit)            plain text, for a key whose value is text
    constraints=[perplexity <= 1.05 * reference]    without inner quotes
    search_space.cache_gb=[1, 500]                  replaces the whole entry of the space
    search_space=results/demo/rounds/02/space.yaml  a file, here the space of a round
    study=mine.yaml                                 a file, for every group
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from engine import Knobs
from engine.errors import did_you_mean
from engine.system.shipped import EXPERIMENTS, SEARCH_SPACES
from harness import ConfigError
from harness.paths import GROUPS, own_folders
from harness.schema import Config, profiles, store_file

PARTS: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(Config)}
TYPES = {
    **{f.name: str(f.type) for f in dataclasses.fields(Config)},
    **{
        f"{name}.{f.name}": str(f.type)
        for name, part in PARTS.items()
        if dataclasses.is_dataclass(part)
        for f in dataclasses.fields(part)
    },
    **{f"knobs.{f.name}": str(f.type) for f in dataclasses.fields(Knobs)},
}  # of every key


def accepted(argv: Sequence[str]) -> list[str]:
    """The arguments in Hydra's grammar, options first; the user's own folders are added to Hydra's search path. Raises
    `ConfigError` with one line for an argument that cannot be read."""
    known, unknown = get_args_parser().parse_known_intermixed_args(list(argv))
    if unknown:
        raise ConfigError(_unknown_flag(unknown[0], [*argv[argv.index(unknown[0]) + 1 :], "VALUE"][0]))
    if known.multirun and known.cfg:
        raise ConfigError("-m runs several studies and --cfg shows one; leave out -m: study=NAME --cfg job")
    if known.config_dir and not Path(known.config_dir).is_dir():
        raise ConfigError(f"--config-dir={known.config_dir} is not a folder; give one that has study/ or search_spaces/")
    left, options, overrides = list(known.overrides), [], _search_path(known.overrides)
    for token in argv:
        if left and token == left[0]:
            overrides += _accepted(left.pop(0), known.multirun, known.config_dir)
        else:
            options.append(token)
    return [*options, *overrides]


def config_dir(argv: Sequence[str]) -> str | None:
    """The value of `--config-dir`, if it is given."""
    return get_args_parser().parse_known_intermixed_args(list(argv))[0].config_dir


def pasted(key: str, value: str) -> str:
    """An override for a shell, with its value quoted for Hydra as well."""
    return shlex.quote(f"{key}={quoted(value)}")


def quoted(value: str) -> str:
    """Any text, quoted for Hydra's grammar."""
    return QuotedString(value, Quote.double).with_quotes()


def parsed(token: str) -> Override | None:
    """An override as Hydra reads it; None if its grammar refuses it."""
    try:
        return OverridesParser.create().parse_override(token)
    except HydraException:
        return None


def choices(config_dir: str | None = None) -> dict[str, list[str]]:
    """The groups, each with the names of its shipped files and of the user's own."""
    folders = [EXPERIMENTS, *own_folders(config_dir)]
    found: dict[str, list[str]] = {}
    for group in GROUPS:
        places = [folder / group for folder in folders]
        if group == "search_space":
            places += [SEARCH_SPACES, *(folder / "search_spaces" for folder in folders)]
        found[group] = sorted({p.stem for place in places for p in place.glob("*.yaml")})
    found["device"] += profiles()
    return found


def keys() -> set[str]:
    """Every key of the configuration, and the groups."""
    return {*(k for k in TYPES if not k.startswith("knobs.")), *GROUPS}


def no_choice(group: str, name: str, options: list[str]) -> str:
    """The line for an unknown choice: the nearest name, and all names if the hint has only that one."""
    hint = did_you_mean(name, options)
    rest = "" if hint.startswith("choose") else f" (there are: {', '.join(options)})"
    return f"{group}={name} is unknown; {hint}{rest}"


def _search_path(overrides: Sequence[str]) -> list[str]:
    """The override that adds the current folder's groups to Hydra's search path; `--config-dir` adds its own."""
    folders = [f for f in own_folders() if any((f / group).is_dir() for group in GROUPS)]
    if not folders or any(token.startswith("hydra.searchpath=") for token in overrides):
        return []
    return [f"hydra.searchpath=[{', '.join(quoted(f'file://{folder}') for folder in folders)}]"]


def _accepted(token: str, multirun: bool, config_dir: str | None) -> list[str]:
    key, equals, value = token.partition("=")
    name, override = key.lstrip("+"), parsed(token)
    if not equals:
        if override is None:
            raise ConfigError(_no_override(token))
        return [token]  # ~key
    if name in GROUPS and value.rstrip("\"'").endswith((".yaml", ".yml")):
        text = str(override.value()) if override and value[0] in "\"'" else value
        files = [text] if not multirun or Path(text).expanduser().is_file() else text.split(",")
        return [f"{key}={','.join(store_file(name, file) for file in files)}"]
    if name in GROUPS and override and isinstance(override.value(), int | float):
        raise ConfigError(no_choice(name, value, choices(config_dir)[name]))
    if re.fullmatch(r"search_space\.\w+", name) and value.startswith(("[", "{")) and override:
        whole = value.startswith("[") or re.search(r"\btype\s*:", value)  # not a part of the present entry
        return [f"{name}=null", token] if whole and not key.startswith("+") else [token]
    if name == "constraints" and override is None:
        token = f"{key}={_constraints(value)}"
        override = parsed(token)
    elif TYPES.get(name, "").startswith("str"):
        several = "," in value and (multirun or override is not None)
        plain = override is None or (not multirun and isinstance(override.value(), int | float))
        if plain and not several and not value.startswith(('"', "'")):
            token = f"{key}={quoted(value)}"
            override = parsed(token)
        elif override is not None and override.is_sweep_override() and not multirun:
            raise ConfigError(f"{token}: a comma separates values, which need -m; write one value {_way(key, value)}")
    if override is None:
        raise ConfigError(_refusal(token, key, value))
    return [token]


def _constraints(value: str) -> str:
    """A list of constraints with each quoted, and with its brackets."""

    def one(match: re.Match[str]) -> str:
        text = match[0].strip()
        return text if not text or text[0] in "\"'" else quoted(text)

    items = re.sub(r"\"[^\"]*\"|'[^']*'|[^\[\],\"']+", one, value)
    return items if items.startswith("[") else f"[{items}]"


def _way(key: str, value: str) -> str:
    return f"quoted like this: {pasted(key, value)}"


def _refusal(token: str, key: str, value: str) -> str:
    """The line for an override that Hydra's grammar refuses; it shows the quoted value if quotes are missing."""
    name = key.lstrip("+")
    kind = TYPES.get(name, "str").split(" ")[0]
    if parsed(f"{key}=x") is None:
        return f"{token}: '{key}' cannot be a key; {did_you_mean(name, sorted(keys()))}"
    if kind in ("int", "float", "bool"):
        return f"{token}: '{value}' is not of type {kind}; give {'true or false' if kind == 'bool' else 'a number'}"
    if value.startswith(("[", "{")) and not kind.startswith("str"):
        return f'{token}: its brackets cannot be read; close each, and quote an item with special signs: {key}=["a=b", c]'
    return f"{token}: the value cannot be read without quotes; write it {_way(key, value)}"


def _no_override(token: str) -> str:
    named = {option: group for group, options in choices().items() for option in options}
    close = difflib.get_close_matches(token, list(named), n=1)
    hint = f"did you mean {named[close[0]]}={close[0]}?" if close else "write KEY=VALUE"
    return f"{token} is not an override KEY=VALUE; {hint}"


def _unknown_flag(flag: str, following: str) -> str:
    name, _, value = flag.lstrip("-").partition("=")
    if name.replace("-", "_") in keys():
        return f"{flag} is not an option; a setting has no dashes: {name.replace('-', '_')}={value or following}"
    flags = [f for f in get_args_parser()._option_string_actions if f.startswith("--")]
    return f"{flag} is not an option; {did_you_mean(flag, flags)}"
