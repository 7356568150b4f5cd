"""Evaluation texts of a setting: the file beside it, or the shipped one with the same fingerprint."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engine.errors import HeadraceError, JudgeError
from engine.measure.judge import Judge
from engine.system.shipped import EVALUATION_TEXTS, PROMPTS

from .setting_file import Setting


def texts_of(setting: Setting) -> Path:
    """The file of a setting's evaluation texts; the default one for a setting that names none. Raises `HeadraceError` if it
    is not there."""
    named, fingerprint = (setting.eval_texts.get(name) for name in ("file", "fingerprint"))
    if named is not None and (path := setting.find(named)).is_file():
        return path
    if named is None and fingerprint is None:
        return EVALUATION_TEXTS
    for path in sorted(PROMPTS.glob("*.yaml")):
        with contextlib.suppress(JudgeError):
            if Judge.load(path).fingerprint == fingerprint:
                return path
    what = named or setting.eval_texts.get("name") or fingerprint
    raise HeadraceError(f"{setting.source}: its evaluation texts {what} are not there; give them with --eval-texts")
