"""Unreadable files: each reason has its own line, with a remedy that fits it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Checkpoint, CheckpointError
from engine.checkpoint.files.unreadable import download

Make = Callable[..., Path]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a2146' * 8}\n"
HUB = "models--moonshotai--Kimi-K2.5/snapshots/0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("qwen3_moe"), tmp_path / HUB))


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as e:
        Checkpoint.open(path)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_git_lfs_pointer(copied: Path, name: str) -> None:
    (copied / name).write_text(POINTER + "size 12345\n")
    assert f"{name} is a Git LFS pointer, not the file itself; run git lfs pull in {copied}" in refused(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_to_nothing(copied: Path, name: str) -> None:
    (copied / name).unlink()
    (copied / name).symlink_to("../../blobs/0123")
    line = refused(copied)
    assert f"{name} is a link to ../../blobs/0123, which does not exist; finish its download: hf download " in line
    assert line.endswith("moonshotai/Kimi-K2.5 --revision 0123456789abcdef0123456789abcdef01234567")
    plain = copied.rename(copied.parents[2] / "plain")
    assert "which does not exist; copy the file itself there" in refused(plain)


def test_an_empty_file(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"")
    assert "model.safetensors is empty; copy it again" in refused(copied)


def test_a_folder_in_a_file_s_place(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").mkdir()
    assert "model.safetensors cannot be read (Is a directory); make it a readable file" in refused(copied)


@pytest.mark.parametrize("what", ["folder", "config.json", "model.safetensors"])
def test_no_right_to_read(copied: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """As another user: root may read everything, so the system's answer is imitated where the tests run as root."""
    target = copied if what == "folder" else copied / what
    if os.geteuid():
        target.chmod(0)
        line = refused(copied)
        target.chmod(0o700)
    else:
        real = {name: getattr(Path, name) for name in ("open", "stat", "iterdir", "read_bytes")}
        for name, call in real.items():
            monkeypatch.setattr(Path, name, _denied(call, target))
        monkeypatch.setattr("builtins.open", _denied(open, target))
        line = refused(copied)
    assert line == f"{target} cannot be read (Permission denied); give this user the right to read it"


def _denied(call: Callable[..., object], target: Path) -> Callable[..., object]:
    def denied(path: object, *more: object, **named: object) -> object:
        if path == target:
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, *more, **named)

    return denied


@pytest.mark.parametrize("place", ["model.safetensors.part", "model-00002-of-00002.safetensors.incomplete", "x.aria2",
                                   ".cache/huggingface/download/a.0123.incomplete"])  # fmt: skip
def test_a_download_that_is_not_finished(copied: Path, place: str) -> None:
    path = copied.rename(copied.parents[2] / "plain")
    assert download(path) == ""
    (path / place).parent.mkdir(parents=True, exist_ok=True)
    (path / place).write_bytes(b"")
    (path / "model.safetensors").unlink()
    name = Path(place).name
    assert f"has no model*.safetensors; finish its download ({name} is a part of it)" in refused(path)
