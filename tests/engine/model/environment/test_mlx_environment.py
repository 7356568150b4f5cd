"""MLX environment: variables are there before MLX starts, in a command by a restart; a loop of restarts ends."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import pytest

from engine import KnobError
from engine.model.environment import mlx_environment
from engine.model.environment.mlx_environment import restart_with, variables

ALL = {
    "mlx_ops_per_buffer": 20, "mlx_mb_per_buffer": 50, "mlx_fast_synch": True, "mlx_cuda_graphs": False, "cache_gb": 1.0
}  # fmt: skip


class Restarted(Exception):
    pass


def execute(program: str, words: list[str], environment: dict[str, str]) -> NoReturn:
    raise Restarted(program, words, environment)


def test_variables_of_knobs() -> None:
    assert variables(ALL) == {
        "MLX_MAX_OPS_PER_BUFFER": "20", "MLX_MAX_MB_PER_BUFFER": "50", "MLX_METAL_FAST_SYNCH": "1",
        "MLX_USE_CUDA_GRAPHS": "0",
    }  # fmt: skip
    assert variables({"mlx_ops_per_buffer": None, "mlx_fast_synch": False, "mlx_cuda_graphs": True}) == variables({}) == {}


def test_a_command_restarts_itself_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mlx_environment.RESTARTED, raising=False)
    monkeypatch.setattr(mlx_environment, "AT_START", dict.fromkeys(mlx_environment.VARIABLES.values()))
    restart_with({"cache_gb": 1.0}, execute)
    with pytest.raises(Restarted) as e:
        restart_with(ALL, execute)
    program, words, environment = e.value.args
    assert (program, words) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
    assert {**variables(ALL), mlx_environment.RESTARTED: "1"}.items() <= environment.items()
    assert {k: v for k, v in os.environ.items() if k not in variables(ALL)}.items() <= environment.items()
    monkeypatch.setattr(mlx_environment, "AT_START", variables(ALL))
    restart_with(ALL, execute)


def test_a_restart_that_did_not_help_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mlx_environment.RESTARTED, "1")
    monkeypatch.setattr(mlx_environment, "AT_START", dict.fromkeys(mlx_environment.VARIABLES.values()))
    with pytest.raises(KnobError, match="comes too late"):
        restart_with(ALL, execute)


def test_the_module_needs_no_mlx() -> None:
    import subprocess

    code = "import sys, engine; print('mlx.core' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
