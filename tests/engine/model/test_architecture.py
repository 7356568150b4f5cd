"""Architecture: mlx-lm's models are found by file name and by alias."""

from __future__ import annotations

import pytest
from mlx_lm.utils import MODEL_REMAPPING

from engine.model.architecture import has_architecture


@pytest.mark.parametrize("name", ["deepseek_v3", next(iter(MODEL_REMAPPING))])
def test_known_architectures(name: str) -> None:
    assert has_architecture(name)


def test_an_unknown_architecture() -> None:
    assert not has_architecture("no_such_model")
