"""Hydra's errors: turns each one that a user caused into one line with the value, the choices and the remedy."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from engine.errors import did_you_mean
from engine.system.shipped import EXPERIMENTS
from harness.paths import GROUPS, own_folders
from harness.schema import FILES, Config

from .overrides import TYPES, config_dir, keys, no_choice

HELP = "see python -m harness.search --help"


def explain(error: Exception) -> str | None:
    """The line for an exception of Hydra or OmegaConf that a user caused; None for any other exception."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, ValueError) and "invalid literal for int()" in str(error):  # a key of an entry that is a list
        for key, entry in re.findall(r"((search_space\.\w+)\.\w+)=", " ".join(sys.argv[1:])):
            return f"{key}: the space has {entry} as [LOW, HIGH]; give the whole entry: '{entry}=[LOW, HIGH]'"
    if isinstance(error, OSError) and error.filename:  # Hydra's folder of a multirun
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
    """The remedy for a value of the wrong type."""
    if match := re.match(r"search_space\.\w+", key):
        return f"give the whole entry: '{match[0]}=[LOW, HIGH]' or '{match[0]}={{type: ordinal, values: [A, B]}}'"
    return HELP


def _wrong_file(name: str, text: str, key: str) -> str:
    """The line for an error in a file. `text` is Hydra's error, and `key` the key that it names, which may be empty."""
    where, missing = _file(name), re.match(r"Key '([^']*)' not in", text)
    group, last = name.partition("/")[0], key.rpartition(".")[2]
    if missing and key.startswith(f"{group}.") and last in (*GROUPS, *(f.name for f in dataclasses.fields(Config))):
        return f"{where}: {last} would be a key of {group}; make '# @package _global_' the first line of the file"
    if missing:
        return f"{where}: {_unknown_key(key)}"
    if "Cannot merge DictConfig with ListConfig" in text:
        space = _content(name).get("search_space")
        lists = {k: v for k, v in space.items() if isinstance(v, list)} if isinstance(space, dict) else {}
        for knob, ends in lists.items():
            full = f"{{type: {'int' if TYPES.get(f'knobs.{knob}') == 'int' else 'float'}, low: {ends[0]}, high: {ends[-1]}}}"
            return f"{where}: search_space.{knob} is a list, and the space has an entry of this name; write {knob}: {full}"
    return f"{where}: {f'{key}: ' if key else ''}{_plain_text(text)}; {HELP}"


def _file(name: str) -> str:
    """The file of a choice GROUP/NAME, as the command line has it if it was given there."""
    given = FILES.get(name.replace("/", "=", 1))
    return given.partition("=")[2] if given else f"{name}.yaml"


def _content(name: str) -> Mapping[str, Any]:
    """The content of a configuration file, looked for in the shipped folder and in the user's own."""
    for place in (Path(), EXPERIMENTS, *own_folders(config_dir(sys.argv[1:]))):
        if (path := place / Path(_file(name)).expanduser()).is_file():
            content = yaml.safe_load(path.read_text())
            return content if isinstance(content, dict) else {}
    return {}


def _unknown_option(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"{error.missing_cfg_file} is not a configuration of {EXPERIMENTS}; {HELP}"
    return no_choice(group, name, sorted(error.options or []))


def _unknown_key(key: str) -> str:
    """The line for a key that the schema does not have, with the nearest one of the same depth."""
    inside = [k for k in keys() if k.startswith(key.rpartition(".")[0] + ".")] if "." in key else []
    return f"{key} is not a key; {did_you_mean(key, sorted(inside or keys()))}"


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _plain(error: BaseException) -> str:
    return _plain_text(_line(error))


def _plain_text(line: str) -> str:
    return re.sub(r"^Value '(.*)' of type '.*' could not be converted to (\w+)$", r"'\1' is not of type \2", line)
