"""The compiler's check: none, one that is too old, and missing headers of Python each end in one line that helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.native import compiler

INSTALL = ("apt install g++", "dnf install gcc-c++", "xcode-select --install")


def fake(folder: Path, text: str, status: int) -> list[str]:
    """A compiler that prints `text` as its errors."""
    file = folder / "fake-c++"
    file.write_text(f"#!{sys.executable}\nimport sys\nprint({text!r}, file=sys.stderr)\nsys.exit({status})\n")
    file.chmod(0o755)
    return [str(file)]


def test_a_compiler_that_works(tmp_path: Path) -> None:
    assert compiler.problem(fake(tmp_path, "a warning", 0)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("In file x\ntry.cpp:3:20: error: no such keyword\nnote", "(try.cpp:3:20: error: no such keyword)"),
        ("xcode-select: note: no developer tools were found", "(xcode-select: note: no developer tools were found)"),
        ("", "(exit status 1)"),
    ],
)  # fmt: skip
def test_one_that_cannot(tmp_path: Path, text: str, reason: str) -> None:
    said = compiler.problem(fake(tmp_path, text, 1))
    assert said and reason in said and "C++17" in said and all(word in said for word in INSTALL) and "\n" not in said


def test_missing_headers_of_python(tmp_path: Path) -> None:
    if compiler.problem(compiler.command()):
        pytest.skip("no C++ compiler")
    said = compiler.problem(compiler.command(), str(tmp_path))
    assert said and "headers of Python" in said and "Python.h" in said and "python3-dev" in said


def test_the_script_that_make_runs(tmp_path: Path) -> None:
    """Alone, as before an installation, with no program in the path."""
    command = [sys.executable, "-S", str(Path(compiler.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)}, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and all(word in done.stderr for word in INSTALL)
