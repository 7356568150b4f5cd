"""A CUDA driver without a GPU: its shared library, compiled for a test, and what a test sees and sets in it."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("cuda_fake.c")


def compiled(folder: Path) -> str:
    """The library, built in `folder`. Each file is loaded once, so a test with a folder of its own has a new driver."""
    file = folder / "libcuda_fake.so"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        subprocess.run(
            [*compiler, "-O1", "-shared", "-fPIC", "-pthread", str(SOURCE), "-o", str(file)], check=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("no C compiler")
    return str(file)


class FakeCuda:
    def __init__(self, folder: Path) -> None:
        self.path = compiled(folder)
        self._library = ctypes.CDLL(self.path)
        self._library.fake_calls.restype = ctypes.c_char_p
        self._library.fake_copied.restype = self._library.fake_from_locked.restype = ctypes.c_int64

    @property
    def calls(self) -> list[str]:
        return str(self._library.fake_calls().decode()).split()

    @property
    def copied(self) -> int:
        """Bytes copied so far."""
        return int(self._library.fake_copied())

    @property
    def copied_from_locked(self) -> int:
        """Those of them that were in page-locked memory."""
        return int(self._library.fake_from_locked())

    def invert(self) -> None:
        """Copies deliver inverted bits, so that bytes which took another way are seen."""
        self._library.fake_invert(1)

    def breaks(self, name: str, code: int, after: int = 0) -> None:
        """Let the function `name` fail with `code` after some calls; with 0 it works again."""
        self._library.fake_break(name.encode(), code, after)
