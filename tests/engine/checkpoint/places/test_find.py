"""A checkpoint is found by path and as ORG/NAME, and a model that is not there ends in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from huggingface_hub import constants

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.places.find import find_checkpoint, hub_name
from engine.errors import CheckpointError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("find") / "checkpoint", "qwen3_moe", bits=4)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home and an empty cache, and no network."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def linked(place: Path, whole: Path) -> Path:
    """The files of a checkpoint as links, as in a snapshot."""
    place.mkdir(parents=True)
    for file in whole.iterdir():
        (place / file.name).symlink_to(file)
    return place


def test_a_snapshot_opens_by_the_name_of_the_model(tmp_path: Path, whole: Path) -> None:
    place = linked(tmp_path / "hub" / "models--ORG--NAME" / "snapshots" / "abc", whole)
    (tmp_path / "hub" / "models--ORG--NAME" / "refs").mkdir()
    (tmp_path / "hub" / "models--ORG--NAME" / "refs" / "main").write_text("abc")
    for given in ("ORG/NAME", "https://huggingface.co/ORG/NAME", place, tmp_path / "hub" / "models--ORG--NAME"):
        source = Checkpoint.open(given)
        assert (source.path, source.name) == (place, "ORG/NAME")
    local = linked(tmp_path / "ORG" / "NAME", whole)
    assert find_checkpoint("ORG/NAME") == Path("ORG/NAME") and find_checkpoint("ORG/NAME").resolve() == local


def test_a_model_of_lm_studio_opens_by_its_name(tmp_path: Path, whole: Path) -> None:
    place = linked(tmp_path / ".lmstudio" / "models" / "ORG" / "NAME", whole)
    source = Checkpoint.open("ORG/NAME")
    assert (source.path, source.name, hub_name(place)) == (place, "ORG/NAME", "ORG/NAME")
    (place / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(CheckpointError, match=rf"1 of 2 shards .*hf download ORG/NAME --local-dir {place}"):
        find_checkpoint("ORG/NAME")


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"neither a folder here nor in .*hub\) nor in .*hf download ORG/NAME$"
    ) as caught:
        find_checkpoint("ORG/NAME")
    assert "\n" not in str(caught.value)
    for given in ("nowhere", "/nowhere/at/all", "a/b/c", "x" * 5000, "a\0b", "~nosuchuser/x"):
        with pytest.raises(CheckpointError) as caught:
            find_checkpoint(given)
        assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_named(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(CheckpointError, match=f"is a file; give its folder: {whole}"):
        find_checkpoint(whole / "model.safetensors")
    (tmp_path / "q4.gguf").touch()
    for given in (tmp_path, tmp_path / "q4.gguf"):
        with pytest.raises(CheckpointError, match=r"GGUF"):
            Checkpoint.open(given)


def test_a_partial_snapshot_names_the_command_that_resumes(tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--ORG--NAME" / "snapshots" / "abc"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    for given in ("ORG/NAME", place):
        with pytest.raises(CheckpointError, match=r"in part: there are no weights; finish .*hf download ORG/NAME$"):
            find_checkpoint(given)
