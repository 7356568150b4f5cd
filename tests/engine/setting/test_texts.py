"""Evaluation texts of a setting: beside it, shipped, or missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.measure.judge import Judge
from engine.setting.setting_file import Setting
from engine.setting.texts import texts_of
from engine.system.shipped import EVALUATION_TEXTS


def test_the_texts_are_found(tmp_path: Path) -> None:
    fingerprint = Judge.load(EVALUATION_TEXTS).fingerprint
    (tmp_path / "judge.yaml").touch()
    beside = {"file": "../judge.yaml", "fingerprint": fingerprint}
    assert texts_of(Setting("a", {}, eval_texts=beside, place=tmp_path / "best")) == tmp_path / "judge.yaml"
    assert texts_of(Setting("a", {}, eval_texts=beside, place=tmp_path / "far" / "best")) == EVALUATION_TEXTS
    assert texts_of(Setting("a", {})) == EVALUATION_TEXTS
    with pytest.raises(
        HeadraceError, match=r"its evaluation texts \.\./mine\.yaml are not there; give them with --eval-texts"
    ):
        texts_of(Setting("a", {}, eval_texts={"file": "../mine.yaml", "fingerprint": "0" * 16}, place=tmp_path / "best"))
