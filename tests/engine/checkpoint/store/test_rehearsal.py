"""Tests of the mark of a store of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import one_line

from engine import CheckpointError
from engine.checkpoint.config import model_name
from engine.checkpoint.store.rehearsal import NAME, Rehearsal, read_rehearsal

MARK = Rehearsal("kimi_k2.5", {"repeat": 0.3}, (0.8, 0.9), ("a.json", NAME))


def test_the_mark_is_read_back_and_names_the_model(tmp_path: Path) -> None:
    assert read_rehearsal(tmp_path) is None and read_rehearsal(tmp_path / "none") is None
    (tmp_path / NAME).write_text(MARK.as_json())
    assert read_rehearsal(tmp_path) == MARK
    assert model_name(tmp_path) == "kimi_k2.5 (rehearsal: random weights)"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"version": 1', '"version": 7', "has version 7, but this version reads 1"),
        ('"shape"', '"form"', "is damaged"),
        ('"a.json"', '"../a.json"', "names files outside of its folder"),
        ("{", "[", "is damaged"),
    ],
)
def test_a_damaged_mark_is_one_line(tmp_path: Path, old: str, new: str, match: str) -> None:
    (tmp_path / NAME).write_text(MARK.as_json().replace(old, new, 1))
    with pytest.raises(CheckpointError, match=match) as e:
        read_rehearsal(tmp_path)
    one_line(e)
