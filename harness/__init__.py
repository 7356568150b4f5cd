"""Headrace's search: Hydra composes a study, Optuna proposes settings, a child process measures, Parquet stores the rows.

    python -m harness.search study=demo budget.trials=24

`harness.run.worker`, the child process of every run, imports neither Optuna nor pandas nor Hydra. This module imports none
of them either.
"""

import functools
import importlib.metadata
import tomllib
from pathlib import Path

from engine import HeadraceError

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def version() -> str | None:
    """The version of headrace: of the installed package, else of the checkout's pyproject.toml; None without both."""
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    except (OSError, ValueError, KeyError):
        return None


class ConfigError(HeadraceError):
    """A study, key or value of the configuration that cannot be used."""


class ResultsError(HeadraceError):
    """A results folder that cannot be used: not writable, damaged, in use, or of another study."""


class StudyStopped(HeadraceError):
    """A study that stopped before its budget was spent, because the cause would spoil the remaining runs as well."""
