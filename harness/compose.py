"""Hydra's mistakes in one line each: what was given, what there is, what to do. Status 2 is the caller's business."""

from __future__ import annotations

import dataclasses
import re

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from engine.errors import did_you_mean

from . import ROOT
from .schema import Config

HELP = "see python -m harness.search --help"
GROUPS = ("study", "model", "device", "quality", "search_space")


def explain(error: Exception) -> str | None:
    """The line for an exception of Hydra or OmegaConf that a user caused; None if it is not one of these."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, OSError) and error.filename:  # the folder in which Hydra notes a multirun
        return f"results_dir: {error.filename} is not writable ({error.strerror}); choose another with results_dir=DIR"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} is not an override ({_line(error).removeprefix('Error parsing override ')}); write key=value"
        )
    if isinstance(error, ConfigCompositionException):
        text = _line(error)
        if isinstance(cause, ValidationError):
            given = text.removeprefix("Error merging override ")
            return f"{given}: {_plain(cause)}; {HELP}"
        if match := re.match(r"Could not override '([^']*)'", text):
            return _unknown_key(match[1])
        if isinstance(cause, OmegaConfBaseException):
            return f"{text}: {_plain(cause)}; {HELP}"
        return f"{text}; {HELP}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set; give {error.full_key}=VALUE"
    if isinstance(error, ConfigKeyError) and error.full_key:
        return _unknown_key(str(error.full_key))
    return f"{_plain(error)}; {HELP}"


def _unknown_option(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"{error.missing_cfg_file} is not a configuration under {ROOT / 'experiments'}; {HELP}"
    options = sorted(error.options or [])
    return f"{group}={name} is unknown; {did_you_mean(name, options)}" + _all_of(name, options)


def _all_of(name: str, options: list[str]) -> str:
    """The whole list, where the hint names only the nearest."""
    return "" if did_you_mean(name, options).startswith("choose") else f" (there are: {', '.join(options)})"


def _unknown_key(key: str) -> str:
    """A key the schema lacks, with the nearest one of the same depth."""
    keys = [f.name for f in dataclasses.fields(Config)]
    known = [*keys, *GROUPS]
    for name in keys:
        part = getattr(Config(), name)
        known += [f"{name}.{f.name}" for f in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
    inside = [k for k in known if k.startswith(key.rpartition(".")[0] + ".")] if "." in key else []
    return f"{key} is not a key; {did_you_mean(key, inside or sorted(set(known)))}"


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _plain(error: BaseException) -> str:
    line = _line(error)
    return re.sub(r"^Value '(.*)' of type '.*' could not be converted to (\w+)$", r"'\1' is not of type \2", line)
