"""Helpers for one-line messages."""

from __future__ import annotations

import errno
import os

import pytest

from engine.errors import OUT_OF_MEMORY, REMEDIES, HeadraceError, did_you_mean, first_line, foreseeable, shown


def test_the_nearest_name_or_all() -> None:
    assert did_you_mean("cache_bg", ["cache_gb", "top_k"]) == "did you mean cache_gb?"
    assert did_you_mean("zzz", ["cache_gb", "top_k"]) == "choose one of: cache_gb, top_k"


def test_the_first_line_is_short() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 1000))) == 200


@pytest.mark.parametrize("number", sorted({n for numbers in REMEDIES for n in numbers}))
def test_errors_of_the_system_are_one_line_with_a_remedy(number: int) -> None:
    line = foreseeable(OSError(number, os.strerror(number), "/mnt/models/m.safetensors"))
    assert line is not None and line.startswith("/mnt/models/m.safetensors: " + os.strerror(number) + "; ")
    assert "\n" not in line and len(line.partition("; ")[2]) > 10


def test_a_file_of_any_name() -> None:
    assert (
        foreseeable(OSError(errno.EINVAL, "Invalid argument", b"/a/\xff")) == "/a/\\udcff: Invalid argument; check the path"
    )
    assert shown("/a/\udcff").encode() == b"/a/\\udcff" and shown(3) == "3"
    assert foreseeable(FileNotFoundError(errno.ENOENT, "No such file")) == (
        "the current folder was removed; change to another one"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[malloc_or_wait] Unable to allocate 68719476736 bytes."),
        RuntimeError(
            "[METAL] Command buffer execution failed: Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMemory)"
        ),
        RuntimeError("cudaMallocManaged failed: out of memory"),
        RuntimeError(
            "[metal::malloc] Attempting to allocate 90 bytes which is greater than the maximum allowed buffer size"
        ),
    ],
)
def test_exhausted_memory(error: Exception) -> None:
    assert foreseeable(error) == OUT_OF_MEMORY


def test_other_troubles_of_a_machine() -> None:
    lines = {
        "no home folder": RuntimeError("Could not determine home directory."),
        "no thread can be started": RuntimeError("can't start new thread"),
        "MLX cannot be loaded": ModuleNotFoundError("No module named 'mlx'", name="mlx.core"),
        "a package cannot be loaded": ImportError("libz.so.1: cannot open shared object file", name="_x"),
        "is not UTF-8": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "mine": HeadraceError("mine"),
    }
    for sign, error in lines.items():
        line = foreseeable(error)
        assert line is not None and sign in line and "\n" not in line


def test_a_defect_is_none_of_them() -> None:
    assert [foreseeable(e) for e in (KeyError("x"), RuntimeError("x"), OSError(errno.EINVAL, "x"), OSError("x"))] == [
        None
    ] * 4
