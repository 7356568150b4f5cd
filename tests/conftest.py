"""Fixtures shared by all tests: user state goes to a temporary folder, tiny checkpoints are made once a session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import make


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The routing profile and the like never touch the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(family, bits=None, per_expert=False)`: the folder of a tiny random checkpoint, made on first use."""
    made: dict[tuple[object, ...], Path] = {}

    def get(family: str = "deepseek_v3", bits: int | str | None = None, per_expert: bool = False) -> Path:
        key = (family, bits, per_expert)
        if key not in made:
            path = tmp_path_factory.mktemp("checkpoint") / f"{family}-{bits or 'bf16'}"
            made[key] = make(path, family, bits=bits, per_expert=per_expert)
        return made[key]

    return get
