"""The package: errors that the command line prints as one line."""

from __future__ import annotations

import harness
from engine import HeadraceError


def test_errors_are_of_the_command_line() -> None:
    for kind in (harness.ConfigError, harness.ResultsError, harness.StudyStopped):
        assert issubclass(kind, HeadraceError) and kind.__doc__
