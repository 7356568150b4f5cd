"""Headrace's search: Hydra composes a study, Optuna proposes, a child process measures, Parquet remembers.

    python -m harness.search study=demo budget.trials=24

Everything imported by `harness.run.worker`, the child of every trial, stays light: neither Optuna nor pandas lives there.
"""

from engine.errors import HeadraceError


class ConfigError(HeadraceError):
    """A study, key or value that cannot be composed."""


class ResultsError(HeadraceError):
    """A results folder that cannot be used: not writable, damaged, in use, or of another study."""


class StudyStopped(HeadraceError):
    """A study that ended itself before its budget was spent: what it met would have spoilt the rest of the night."""
