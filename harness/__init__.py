"""Headrace's search: Hydra composes a study, Optuna proposes, a child process measures, Parquet remembers.

    python -m harness.search study=demo budget.trials=24

Everything imported by `harness.run.worker`, the child of every trial, stays light: neither Optuna nor pandas lives there.
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
    """A study, key or value that cannot be composed."""


class ResultsError(HeadraceError):
    """A results folder that cannot be used: not writable, damaged, in use, or of another study."""


class StudyStopped(HeadraceError):
    """A study that ended itself before its budget was spent: what it met would have spoilt the rest of the night."""
