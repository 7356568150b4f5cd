"""Families: every model file of mlx-lm with a switch is streamed with the resident model's logits, or refused in one line.

What is seen here is what docs/models.md says.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from families import OWN, SWITCHES, WITHOUT_SWITCH, configuration, file_of, model_files
from mlx_lm.utils import _get_classes
from models_table import BEGIN, END, PAGE, table, try_file
from tiny import CONFIGS

FILES = model_files()
ELSEWHERE = {file_of(config) for config in CONFIGS.values()}  # whose widths are tested in test_identity.py
NOT_QUANTIZED = ("muse_spark", "prism_hadamard_qwen35")


def test_every_model_file_has_a_configuration() -> None:
    missing = sorted(set(FILES) - set(OWN) - ELSEWHERE)
    assert not missing, f"mlx-lm has the model files {missing} with a switch; add a configuration in tests/families.py"
    gone = sorted(set(OWN) - set(FILES))
    assert not gone, f"mlx-lm has no model files {gone} with a switch; take them out of tests/families.py"


def test_a_new_model_file_is_noticed(tmp_path: Path) -> None:
    """A file that builds a switch, one that takes its model from there, and one without."""
    (tmp_path / "new.py").write_text("class Model:\n    def __init__(self):\n        self.experts = SwitchGLU(8, 8, 4)\n")
    (tmp_path / "wraps.py").write_text("from . import new\n\nclass Model:\n    pass\n")
    (tmp_path / "same.py").write_text("from .new import Model\n")
    (tmp_path / "dense.py").write_text("from .base import Args\n\nclass Model:\n    pass\n")
    (tmp_path / "switch_layers.py").write_text("class SwitchGLU:\n    pass\n")
    assert model_files(tmp_path) == ("new", "same", "wraps")


def test_a_configuration_is_that_of_its_file() -> None:
    for file in FILES:
        assert file_of(configuration(file)) == file
        assert _get_classes(configuration(file))[0] is importlib.import_module(f"mlx_lm.models.{file}").Model


def test_a_model_without_a_switch_is_none() -> None:
    for file in WITHOUT_SWITCH:
        assert file not in FILES
        assert not any(name in inspect.getsource(_get_classes({"model_type": file})[0]) for name in SWITCHES)


@pytest.mark.parametrize("file", FILES)
def test_streamed_equals_resident_and_the_page_says_so(tmp_path: Path, file: str) -> None:
    tried = try_file(file, tmp_path)
    for line in tried.refused.values():
        assert "\n" not in line and ("not possible" in line or "Metal" in line), line
    assert all(difference == 0 for difference in tried.differences.values()), tried.differences
    assert all(tried.misses.values())
    assert ("load" in tried.refused) == (tried.differences == {})
    assert tried.row in PAGE.read_text(encoding="utf-8"), "run PYTHONPATH=. python -m tests.models_table"


@pytest.mark.parametrize("file", [f for f in FILES if f not in ELSEWHERE and f not in NOT_QUANTIZED])
def test_at_4_bits_streamed_equals_resident(tmp_path: Path, file: str) -> None:
    tried = try_file(file, tmp_path, bits=4)
    assert tried.differences == {"1": 0.0} and tried.misses["1"] > 0 and not tried.refused


def test_the_page_has_every_model_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = text[text.index(BEGIN) : text.index(END) + len(END)]
    rows = [line for line in found.splitlines() if line.startswith("| `") and "not streamed" not in line]
    assert [row.split("`")[1] for row in rows] == list(FILES)
    assert found == table(rows), "run PYTHONPATH=. python -m tests.models_table"
