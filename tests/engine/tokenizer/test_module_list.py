"""Module list: the kept names are those that transformers finds, and whatever goes wrong costs time only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils.import_utils import define_import_structure

from engine.tokenizer.module_list import keeping, list_file

MODELS = Path(transformers.__file__).parent / "models"
NAMES = {frozenset({"torch"}): {"one.modeling_one": {"A", "B"}}, frozenset(): {"one.configuration_one": {"C"}}}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models' folder of a made-up transformers 9.0, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers, "__version__", "9.0")
    folder = tmp_path / "transformers" / "models"
    (folder / "one").mkdir(parents=True)
    return folder


def never(*_: Any) -> Any:
    raise AssertionError("the sources were read")


def test_a_process_keeps_the_names_that_transformers_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "import engine.tokenizer.without_torch, mlx_lm, transformers; print(transformers.AutoTokenizer.__name__)"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
        assert done.stdout == "AutoTokenizer\n"
    assert list_file(MODELS, transformers.__version__).parent == tmp_path / "headrace"
    for path, prefix in ((MODELS, "models"), (MODELS / "__init__.py", None)):
        found = keeping(never)(path, prefix)
        assert found == define_import_structure(path, prefix) and list(found) == list(define_import_structure(path, prefix))


def test_the_list_is_made_once_for_each_version_and_its_folders(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeping(lambda *_: NAMES)(models / "__init__.py") == NAMES == keeping(never)(models)
    assert keeping(never)(models, "models")[frozenset()] == {"models.one.configuration_one": {"C"}}
    (models / "two").mkdir()
    assert keeping(lambda *_: {})(models) == {}
    monkeypatch.setattr(transformers, "__version__", "9.1")
    with pytest.raises(AssertionError, match="the sources were read"):
        keeping(never)(models)


def test_a_folder_of_one_model_and_a_development_version_are_not_kept(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeping(lambda *given: given)(models / "one", "x") == (models / "one", "x")
    monkeypatch.setattr(transformers, "__version__", "9.0.dev0")
    assert keeping(lambda *given: given)(models) == (models, None)
    assert not (models.parents[1] / "cache").exists()


@pytest.mark.parametrize("content", ["", "[[1]]", '[[["torch"], ["A"]]]', "{"])
def test_a_damaged_list_is_made_again(models: Path, content: str) -> None:
    keeping(lambda *_: {})(models)
    file = list_file(models, "9.0")
    file.write_text(content)
    assert keeping(lambda *_: NAMES)(models) == NAMES == keeping(never)(models)


def test_a_cache_folder_that_cannot_be_written_costs_time_only(models: Path) -> None:
    (models.parents[1] / "cache").write_text("no folder")
    assert keeping(lambda *_: NAMES)(models) == NAMES
