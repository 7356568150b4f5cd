"""Shipped files: a path for other machines is found again here."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.system.shipped import KIMI_MINI, located, portable_path


def test_portable_paths_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for path, text in (
        (KIMI_MINI, "${root:}/experiments/kimi_mini/checkpoint"),
        (Path("/home/someone/models/K2"), "~/models/K2"),
        (Path("/Volumes/ssd/K2"), "/Volumes/ssd/K2"),
    ):
        assert portable_path(path) == text
        assert located(text) == path
