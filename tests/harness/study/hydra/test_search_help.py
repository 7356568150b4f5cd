"""Help of the search: every key has its default and its meaning, and long texts are wrapped."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import Knobs
from harness.study.hydra.search_help import choices_text, keys_text, knobs_text


def test_keys_have_defaults_and_meanings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in keys_text().splitlines()}
    assert {"budget.trials=24", "budget.hours=null", "guards.alone=true", "study.name", "engine.module=engine"} <= set(lines)
    assert all(meaning for meaning in lines.values())


def test_knobs_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = knobs_text()
    assert all(len(line) <= 60 for line in text.splitlines())
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == list(Knobs.names())


def test_own_choices_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.yaml").touch()
    assert "study:        auto, demo, kimi_m2max, mine\n" in choices_text()
