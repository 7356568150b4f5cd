"""Kernel cache: MLX's compiled CUDA kernels are kept per MLX version and GPU, and the user's own setting stays."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from engine.model.environment.kernel_cache import (
    VARIABLE,
    keep_kernels,
    kernel_folder,
    kernels,
    remove_incomplete,
)

VERSION = importlib.metadata.version("mlx")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The driver's list of two equal GPUs, and an empty cache folder."""
    for name in ("0000:17:00.0", "0000:65:00.0"):
        folder = tmp_path / "gpus" / name
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H200 NVL\nIRQ:   \t\t 17\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(VARIABLE, "")  # so that the variable is as before when the test ends
    monkeypatch.delenv(VARIABLE)
    return tmp_path / "gpus"


def test_the_folder_names_the_version_and_the_gpu(tmp_path: Path, driver: Path) -> None:
    assert kernel_folder() == tmp_path / "mlx" / VERSION / "ptx"
    keep_kernels(driver)
    assert kernel_folder() == tmp_path / f"cache/headrace/kernels/{VERSION}-NVIDIA_H200_NVL"
    assert os.environ[VARIABLE] == str(kernel_folder()) and kernel_folder().is_dir()
    assert kernels() == 0
    (kernel_folder() / "kernel.ptx").touch()
    assert kernels() == 1


def test_without_a_gpu_or_a_folder_nothing_changes(tmp_path: Path, driver: Path) -> None:
    keep_kernels(tmp_path / "none")
    (tmp_path / "cache").write_text("a file")
    keep_kernels(driver)
    assert VARIABLE not in os.environ


def test_the_users_folder_stays(tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "module.ptx").touch()
    monkeypatch.setenv(VARIABLE, str(own))
    keep_kernels(driver)
    assert kernel_folder() == own and (own / "module.ptx").exists()


def test_a_child_removes_what_an_interrupted_process_left(driver: Path) -> None:
    keep_kernels(driver)
    folder = kernel_folder()
    for name in ("whole", "long/name"):
        (folder / name).parent.mkdir(exist_ok=True)
        for end in (".ptx", ".txt", ".cu"):
            (folder / f"{name}{end}").write_text("x")
    (folder / "code.ptx").write_text("x")
    (folder / "named.ptx").write_text("x")
    (folder / "named.cu").touch()
    keep_kernels(driver)  # as in a child, which inherits the variable
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.ptx")) == ["long/name.ptx", "whole.ptx"]


def test_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    remove_incomplete(tmp_path / "none")
