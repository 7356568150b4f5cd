"""Files of a study's folder: atomic writes whose errors are `ResultsError`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.system import atomic
from harness import ResultsError


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file atomically and durably. Raises `ResultsError` if it cannot be written."""
    try:
        atomic.write_text(path, content)
    except OSError as e:
        raise unwritable(path, e) from e


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically and durably. Raises `ResultsError` if it cannot be written."""
    try:
        atomic.write_json(path, content)
    except OSError as e:
        raise unwritable(path, e) from e


def unwritable(path: Path, e: OSError) -> ResultsError:
    """The error for a file that could not be written."""
    return ResultsError(f"{atomic.cannot_write(path, e)}, then run the same command again")
