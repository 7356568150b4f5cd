"""Tiny models that converse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import CHAT, add_chat_template, make


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`chat_model(family, template)`: a tiny checkpoint with a chat template, made on first use."""
    made: dict[tuple[str, str], Path] = {}

    def get(family: str = "qwen3_moe", template: str = CHAT) -> Path:
        if (family, template) not in made:
            path = make(tmp_path_factory.mktemp("chat") / family, family)
            made[family, template] = add_chat_template(path, template)
        return made[family, template]

    return get
