"""The hub's cache: snapshots as huggingface_hub lays them out, partial downloads, and the request for a size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, errors

from engine.checkpoint.places import hub
from engine.checkpoint.places.hub import download_line, refuse_partial, repository, snapshot
from engine.errors import CheckpointError

NAME = "ORG/NAME"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("moonshotai/Kimi-K2.5", "moonshotai/Kimi-K2.5"),
        ("https://huggingface.co/ORG/NAME", NAME),
        ("https:/huggingface.co/ORG/NAME/tree/main", NAME),  # a Path drops the second slash
        ("hf.co/ORG/NAME/", NAME),
        ("NAME", None),
        ("./ORG/NAME", None),
        ("../NAME", None),
        ("~/NAME", None),
        ("/ORG/NAME", None),
        ("a/b/c", None),
        ("a--b/c", None),
        ("", None),
    ],
)
def test_what_names_a_model_of_the_hub(text: str, name: str | None) -> None:
    assert repository(text) == name


def cached(cache: Path, commit: str = "abc", *, main: bool = True) -> Path:
    folder = cache / "models--ORG--NAME"
    place = folder / "snapshots" / commit
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    if main:
        (folder / "refs" / "main").write_text(commit)
    return place


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_snapshot_of_main_is_found_or_the_newest(cache: Path) -> None:
    assert snapshot(NAME) is None and snapshot("not a name") is None
    other = cached(cache, "def", main=False)
    assert snapshot(NAME) == other
    main = cached(cache)
    assert snapshot(NAME) == main
    (cache / "models--ORG--NAME" / "refs" / "main").write_text("../..")
    assert snapshot(NAME) in (main, other)


def test_a_partial_download_is_one_line_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"in part: .* has no config.json; finish the download with: hf download ORG/NAME"
    ):
        refuse_partial(tmp_path, NAME)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"there are no weights; finish"):
        refuse_partial(tmp_path, NAME)
    names = [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"metadata": {"total_size": 3 * 10**9}, "weight_map": dict(zip("abc", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"3 of 3 shards are missing .*, 3 GB of 3 GB are missing"):
        refuse_partial(tmp_path, NAME)
    with (tmp_path / names[0]).open("wb") as file:
        file.truncate(10**9)
    (tmp_path / names[1]).symlink_to(tmp_path / "gone")
    with pytest.raises(
        CheckpointError, match=r"2 of 3 shards are missing \(model-00002.*, 2 GB of 3 GB are missing; .* --x y"
    ):
        refuse_partial(tmp_path, NAME, " --x y")
    (tmp_path / names[1]).unlink()
    for name in names[1:]:
        (tmp_path / name).touch()
    refuse_partial(tmp_path, NAME)
    for damage in ("{", "[]", '{"weight_map": 7}', '{"metadata": 7}'):
        (tmp_path / "model.safetensors.index.json").write_text(damage)
        refuse_partial(tmp_path, NAME)


def test_the_download_line_has_the_size_if_the_hub_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "download it with: hf download ORG/NAME"

    def asked(name: str, **_: Any) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(size=594 * 10**9), SimpleNamespace(size=None)])

    monkeypatch.setattr("huggingface_hub.model_info", asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert download_line(NAME) == "download it (594 GB) with: hf download ORG/NAME"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download_line(NAME) == plain
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    assert download_line(NAME) == plain

    def unknown(*_: Any, **__: Any) -> Any:
        raise errors.RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr("huggingface_hub.model_info", unknown)
    assert "the hub has no ORG/NAME" in download_line(NAME)
    monkeypatch.setattr(hub, "PATIENCE_S", 0.05)
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: time.sleep(1))
    begin = time.monotonic()
    assert download_line(NAME) == plain and time.monotonic() - begin < 0.9
