"""Headrace's search: Hydra composes a study, Optuna proposes settings, a child process measures, Parquet stores the rows.

    python -m harness.search study=demo budget.trials=24

`harness.run.worker`, the child process of every run, imports neither Optuna nor pandas nor Hydra. This module imports none
of them either.
"""

from engine.errors import HeadraceError


class ConfigError(HeadraceError):
    """A study, key or value of the configuration that cannot be used."""


class ResultsError(HeadraceError):
    """A results folder that cannot be used: not writable, damaged, in use, or of another study."""


class StudyStopped(HeadraceError):
    """A study that stopped before its budget was spent, because the cause would spoil the remaining runs as well."""
