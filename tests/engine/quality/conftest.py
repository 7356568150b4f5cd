"""Fixtures of quality: short texts, and kimi_mini's reference of them, taken once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Judge, load
from engine.quality.reference import Reference, take_reference
from engine.system.shipped import EVALUATION_TEXTS, KIMI_MINI


@pytest.fixture(scope="session")
def short() -> Judge:
    """The beginnings of two of the evaluation texts."""
    texts = Judge.load(EVALUATION_TEXTS).texts
    return Judge(tuple(dataclasses.replace(t, prompt=t.prompt[:150]) for t in (texts[0], texts[7])))


@pytest.fixture(scope="session")
def reference(short: Judge) -> Reference:
    with load(KIMI_MINI) as resident:
        return take_reference(resident, short)


@pytest.fixture(scope="session")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)
