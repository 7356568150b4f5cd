"""Known checkpoints: nothing is parsed or hashed again, as long as no file has changed; any other file is ignored."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Checkpoint, CheckpointError
from engine.checkpoint import fingerprint as fingerprints
from engine.checkpoint import known
from engine.checkpoint.known import keep, opened, take

Make = Callable[..., Path]


@pytest.fixture
def path(checkpoint: Make, tmp_path: Path) -> Path:
    """A private copy of a checkpoint."""
    return Path(shutil.copytree(checkpoint("qwen3_moe", 4), tmp_path / "model"))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one that knows nothing."""
    monkeypatch.setattr(known, "_opened", {})
    monkeypatch.setattr(fingerprints, "_known", {})


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)


def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(Checkpoint, "open", refuse)
    monkeypatch.setattr(fingerprints, "_hashed", refuse)


@pytest.mark.parametrize(
    ("packed", "family", "bits"),
    [(False, "qwen3_moe", 4), (True, "qwen3_moe", 4), (False, "kimi_k25", None), (False, "deepseek_v3", None)],
)
def test_a_run_parses_and_hashes_nothing(
    checkpoint: Make, store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, family: str, bits: Any
) -> None:
    """Also where the arguments of a model are objects of mlx-lm's own (kimi_k25)."""
    path, file = (store if packed else checkpoint)(family, bits), tmp_path / "known"
    first = opened(path)
    keep(first, file)
    forget(monkeypatch)
    no_reads(monkeypatch)
    assert take(file)
    again = opened(path)
    assert again.fingerprint == first.fingerprint == again.with_top_k(1).fingerprint
    for name in ("path", "config", "files", "rest_bytes", "header_digest", "tensors", "followed"):
        assert getattr(again, name) == getattr(first, name), name
    assert [repr(layer.tensors) for layer in again.layers] == [repr(layer.tensors) for layer in first.layers]
    assert np.array_equal(again.blocks.offset, first.blocks.offset)
    assert packed == (again.levels is not None) and again.built.switches == first.built.switches
    assert opened(path) is again


def test_a_changed_file_is_opened_again(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, file = opened(path), tmp_path / "known"
    keep(first, file)
    assert opened(path) is first
    shard = first.files[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(1, 1))
    assert not take(file)
    second = opened(path)
    assert second is not first and second.fingerprint != first.fingerprint
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError):
        opened(path)


def test_other_files_are_ignored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "known"
    assert not take(file)
    keep(opened(path), file)
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        file.write_bytes(damaged)
        assert not take(file)
    file.write_bytes(pickle.dumps((os.getcwd, (), "", None)))
    assert not take(file)  # an object that is no part of a checkpoint is not made
    file.write_bytes(whole)
    monkeypatch.setattr(known, "CODE", tmp_path)  # another version of the code
    assert not take(file)
