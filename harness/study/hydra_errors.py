"""The command line before Hydra reads it, and Hydra's mistakes in one line each: what was given, what there is, what to do.

`accepted` takes what Hydra's grammar refuses though it can mean one thing only, and says of the rest how to quote it:

    model.path=/Volumes/Big SSD/x (4bit)            text, as it stands, for a key whose value is text
    constraints=[perplexity <= 1.05 * reference]    without inner quotes
    search_space.cache_gb=[1, 500]                  in the place of whatever entry the space has
    search_space=results/demo/rounds/02/space.yaml  a file, for instance that of a round
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from engine import Knobs
from engine.errors import did_you_mean
from harness import ROOT, ConfigError
from harness.schema import Config, store_space

HELP = "see python -m harness.search --help"
GROUPS = ("study", "model", "device", "quality", "search_space")
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
    """The arguments as Hydra takes them, options first. Raises `ConfigError` with one line for what cannot be read."""
    known, unknown = get_args_parser().parse_known_intermixed_args(list(argv))
    if unknown:
        raise ConfigError(_unknown_flag(unknown[0], [*argv[argv.index(unknown[0]) + 1 :], "VALUE"][0]))
    if known.multirun and known.cfg:
        raise ConfigError("-m runs and --cfg only shows; drop one of the two, or show one study: study=NAME --cfg job")
    left, options, overrides = list(known.overrides), [], []
    for token in argv:
        if left and token == left[0]:
            overrides += _accepted(left.pop(0), known.multirun)
        else:
            options.append(token)
    return [*options, *overrides]


def pasted(key: str, value: str) -> str:
    """An override for a shell, with its value quoted for Hydra as well."""
    return shlex.quote(f"{key}={quoted(value)}")


def quoted(value: str) -> str:
    """Text as Hydra's grammar takes it, whatever is in it."""
    return QuotedString(value, Quote.double).with_quotes()


def parsed(token: str) -> Override | None:
    """An override as Hydra reads it; None if its grammar refuses it."""
    try:
        return OverridesParser.create().parse_override(token)
    except HydraException:
        return None


def choices() -> dict[str, list[str]]:
    """The groups, with the files in them."""
    places = {group: ROOT / "experiments" / group for group in GROUPS} | {"search_space": ROOT / "search_spaces"}
    return {group: sorted(p.stem for p in place.glob("*.yaml")) for group, place in places.items()}


def _accepted(token: str, multirun: bool) -> list[str]:
    key, equals, value = token.partition("=")
    name, override = key.lstrip("+"), parsed(token)
    if not equals:
        if override is None:
            raise ConfigError(_no_override(token))
        return [token]  # ~key
    if name == "search_space" and value.rstrip("\"'").endswith((".yaml", ".yml")):
        text = str(override.value()) if override and value[0] in "\"'" else value
        files = [text] if not multirun or Path(text).expanduser().is_file() else text.split(",")
        return [f"{key}={','.join(map(store_space, files))}"]
    if name in GROUPS and override and isinstance(override.value(), int | float):
        raise ConfigError(_no_choice(name, value, choices()[name]))
    if re.fullmatch(r"search_space\.\w+", name) and value.startswith(("[", "{")) and override:
        whole = value.startswith("[") or re.search(r"\btype\s*:", value)  # not a part of what the entry has
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
            raise ConfigError(f"{token}: a comma parts several values, which need -m; one value is {_way(key, value)}")
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
    """The line for what Hydra's grammar refuses: how to quote the value, if that is what is wrong."""
    name = key.lstrip("+")
    kind = TYPES.get(name, "str").split(" ")[0]
    if parsed(f"{key}=x") is None:
        return f"{token}: '{key}' cannot be a key; {did_you_mean(name, sorted(_keys()))}"
    if kind in ("int", "float", "bool"):
        return f"{token}: '{value}' is not of type {kind}; give {'true or false' if kind == 'bool' else 'a number'}"
    if value.startswith(("[", "{")) and not kind.startswith("str"):
        return f"{token}: its brackets cannot be read; close each, and quote an item that has signs: {key}=[\"a=b\", c]"
    return f"{token}: the value cannot be read without quotes; write it {_way(key, value)}"


def _no_override(token: str) -> str:
    named = {option: group for group, options in choices().items() for option in options}
    close = difflib.get_close_matches(token, list(named), n=1)
    hint = f"did you mean {named[close[0]]}={close[0]}?" if close else "write KEY=VALUE"
    return f"{token} is not an override KEY=VALUE; {hint}"


def _unknown_flag(flag: str, following: str) -> str:
    name, _, value = flag.lstrip("-").partition("=")
    if name.replace("-", "_") in _keys():
        return f"{flag} is not an option; a setting has no dashes: {name.replace('-', '_')}={value or following}"
    flags = [f for f in get_args_parser()._option_string_actions if f.startswith("--")]
    return f"{flag} is not an option; {did_you_mean(flag, flags)}"


def explain(error: Exception) -> str | None:
    """The line for an exception of Hydra or OmegaConf that a user caused; None if it is not one of these."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, ValueError) and "invalid literal for int()" in str(error):  # an entry's key, of a list
        for key, entry in re.findall(r"((search_space\.\w+)\.\w+)=", " ".join(sys.argv[1:])):
            return f"{key}: the space has {entry} as [LOW, HIGH]; give it whole: '{entry}=[LOW, HIGH]'"
    if isinstance(error, OSError) and error.filename:  # the folder in which Hydra notes a multirun
        return f"results_dir: {error.filename} is not writable ({error.strerror}); choose another with results_dir=DIR"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, ConfigCompositionException):
        text = _line(error)
        if match := re.match(r"In '([^']*)': \w+ raised while composing config:\n(.*)\n\s*full_key: (.*)", str(error)):
            return _wrong_file(*match.groups())
        if match := re.match(r"Ambiguous value for argument '(.*)'", text):
            return f"{match[1]} has several values; give one, or run a study for each with -m"
        if match := re.match(r"Could not override '([^']*)'", text):
            return _unknown_key(match[1])
        given = text.removeprefix("Error merging override ")
        if isinstance(cause, OmegaConfBaseException):
            return f"{given}: {_plain(cause)}; {_remedy(str(cause.full_key))}"
        return f"{text}; {HELP}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set; give {error.full_key}=VALUE"
    if isinstance(error, ConfigKeyError) and error.full_key:
        return _unknown_key(str(error.full_key))
    return f"{_plain(error)}; {HELP}"


def _remedy(key: str) -> str:
    """What to do about a value that does not fit its key."""
    if match := re.match(r"search_space\.\w+", key):
        return f"give the whole entry: '{match[0]}=[LOW, HIGH]' or '{match[0]}={{type: ordinal, values: [A, B]}}'"
    return HELP


def _wrong_file(name: str, text: str, key: str) -> str:
    """What is wrong in a file that was composed, by the error's text and the key that it names (empty for some)."""
    where, missing = f"{name}.yaml", re.match(r"Key '([^']*)' not in", text)
    group, last = name.partition("/")[0], key.rpartition(".")[2]
    if missing and key.startswith(f"{group}.") and last in (*GROUPS, *(f.name for f in dataclasses.fields(Config))):
        return f"{where}: {last} would lie below {group}; make '# @package _global_' the first line of the file"
    if missing:
        return f"{where}: {_unknown_key(key)}"
    if "Cannot merge DictConfig with ListConfig" in text:
        space = _content(name).get("search_space")
        lists = {k: v for k, v in space.items() if isinstance(v, list)} if isinstance(space, dict) else {}
        for knob, ends in lists.items():
            full = f"{{type: {'int' if TYPES.get(f'knobs.{knob}') == 'int' else 'float'}, low: {ends[0]}, high: {ends[-1]}}}"
            return f"{where}: search_space.{knob} is a list, and the space has an entry there; write {knob}: {full}"
    return f"{where}: {f'{key}: ' if key else ''}{_plain_text(text)}; {HELP}"


def _content(name: str) -> Mapping[str, Any]:
    """A file of the configuration, found as Hydra finds it."""
    added = get_args_parser().parse_known_intermixed_args(sys.argv[1:])[0].config_dir
    for place in (*([Path(added)] if added else []), ROOT / "experiments"):
        if (path := place / f"{name}.yaml").is_file():
            content = yaml.safe_load(path.read_text())
            return content if isinstance(content, dict) else {}
    return {}


def _unknown_option(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"{error.missing_cfg_file} is not a configuration under {ROOT / 'experiments'}; {HELP}"
    return _no_choice(group, name, sorted(error.options or []))


def _no_choice(group: str, name: str, options: list[str]) -> str:
    """The whole list too, where the hint names only the nearest."""
    hint = did_you_mean(name, options)
    rest = "" if hint.startswith("choose") else f" (there are: {', '.join(options)})"
    return f"{group}={name} is unknown; {hint}{rest}"


def _keys() -> set[str]:
    return {*(k for k in TYPES if not k.startswith("knobs.")), *GROUPS}


def _unknown_key(key: str) -> str:
    """A key the schema lacks, with the nearest one of the same depth."""
    inside = [k for k in _keys() if k.startswith(key.rpartition(".")[0] + ".")] if "." in key else []
    return f"{key} is not a key; {did_you_mean(key, sorted(inside or _keys()))}"


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _plain(error: BaseException) -> str:
    return _plain_text(_line(error))


def _plain_text(line: str) -> str:
    return re.sub(r"^Value '(.*)' of type '.*' could not be converted to (\w+)$", r"'\1' is not of type \2", line)
