"""Compiler: whether one is here that can build the extension, and the one line that says what to install.

`setup.py` loads this file and `make` runs it, both before anything is installed, so it imports the standard library only.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

INSTALL = (
    "Debian, Ubuntu: apt install g++ python3-dev; Fedora: dnf install gcc-c++ python3-devel; Mac: xcode-select --install"
)
# What the sources rely on: C++17, threads, and the headers of this Python.
CPP17 = "#include <optional>\n#include <thread>\nstd::optional<int> value;\nint main() { if constexpr (true) return 0; }\n"
PYTHON = "#define Py_LIMITED_API 0x030B0000\n#include <Python.h>\nint main() { return 0; }\n"
LIMIT_S = 60


def command() -> list[str]:
    """The C++ compiler as setuptools takes it: `CXX`, or the one that built this Python."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def problem(compiler: Sequence[str], headers: str = "") -> str | None:
    """One line that says why `compiler` cannot build the extension and what to install; None if it can. It compiles two
    small programs, because macOS has a `c++` that only offers to install the real one. `headers` is the folder of
    `Python.h`, by default that of this Python."""
    if shutil.which(compiler[0]) is None:
        return f"Headrace needs a C++ compiler, and {compiler[0]} is not installed. {INSTALL}"
    include = headers or sysconfig.get_path("include")
    reason = _refused(compiler, CPP17, include)
    if reason:
        return f"Headrace needs a compiler for C++17, and {compiler[0]} is none ({reason}). {INSTALL}"
    reason = _refused(compiler, PYTHON, include)
    if reason:
        return f"Headrace needs the C headers of Python, and {include} has none that compile ({reason}). {INSTALL}"
    return None


def _refused(compiler: Sequence[str], text: str, include: str) -> str | None:
    """The compiler's first error, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text(text)
        words = [*compiler, "-std=c++17", "-fPIC", f"-I{include}", "-c", str(source), "-o", str(Path(folder, "try.o"))]
        try:
            done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=LIMIT_S)
        except (OSError, subprocess.SubprocessError) as e:
            return str(e).splitlines()[0][:200]
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    error = next((line for line in lines if "error" in line), lines[0] if lines else f"exit status {done.returncode}")
    return error.replace(str(source), source.name)[:200]


if __name__ == "__main__":
    sys.exit(problem(command()))
