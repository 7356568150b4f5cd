"""Without torch: our own processes hide an installed torch from mlx-lm, and code of a checkpoint may import it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HIDDEN = """
import importlib.util, sys
FIRST
import engine.tokenizer.without_torch as without
print(importlib.util.find_spec("torch") is not None)
without.show_torch()
import torch
print(torch.__name__)
"""


def run(folder: Path, code: str) -> list[str]:
    path = os.pathsep.join([str(folder), str(Path.cwd())])
    done: Any = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return str(done.stdout).split()


@pytest.mark.parametrize(("first", "found"), [("", "False"), ("import engine, torch", "True")])
def test_torch_is_hidden_until_foreign_code_runs(tmp_path: Path, first: str, found: str) -> None:
    """A process that has imported torch before keeps it."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    assert run(tmp_path, HIDDEN.replace("FIRST", first)) == [found, "torch"]


@pytest.mark.parametrize("module", ["engine.cli.offline", "harness.run.worker"])
def test_children_hide_it_before_they_import_mlx_lm(tmp_path: Path, module: str) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    code = f"import sys, {module}; print(sys.modules['torch'], sorted({{'engine', 'mlx_lm'}} & set(sys.modules))[0])"
    assert run(tmp_path, code) == ["None", "engine"]
