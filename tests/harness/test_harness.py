"""The package: its version, and errors that the command line prints as one line."""

from __future__ import annotations

import importlib.metadata

import pytest

import harness
from engine import HeadraceError


def test_version_of_the_package_or_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    harness.version.cache_clear()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert str(harness.version())[0].isdigit()  # of pyproject.toml
    harness.version.cache_clear()
    monkeypatch.setattr(harness, "ROOT", harness.ROOT / "no-such-folder")
    assert harness.version() is None
    harness.version.cache_clear()


def test_errors_are_of_the_command_line() -> None:
    for kind in (harness.ConfigError, harness.ResultsError, harness.StudyStopped):
        assert issubclass(kind, HeadraceError) and kind.__doc__
