"""MLX environment: settings that MLX reads once from environment variables, when its device starts.

A variable set later changes nothing (static values in mlx/utils.h and in device.cpp of mlx/backend/metal and
mlx/backend/cuda). So a measuring child gets them in its environment, a command restarts itself with them, and `load` in a
running process refuses to be too late.
This module imports no MLX; `engine` imports it before MLX.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from engine.errors import KnobError
from engine.knobs import DEFAULTS

VARIABLES = {  # knob -> variable
    "mlx_ops_per_buffer": "MLX_MAX_OPS_PER_BUFFER",
    "mlx_mb_per_buffer": "MLX_MAX_MB_PER_BUFFER",
    "mlx_fast_synch": "MLX_METAL_FAST_SYNCH",
    "mlx_cuda_graphs": "MLX_USE_CUDA_GRAPHS",
}
RESTARTED = "HEADRACE_RESTARTED"  # set in a command that restarted itself
AT_START = {variable: os.environ.get(variable) for variable in VARIABLES.values()}  # when MLX was imported, or before

Exec = Callable[[str, list[str], dict[str, str]], NoReturn]


def variables(values: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables of knob values; without those that are at their defaults."""
    return {
        variable: str(int(values[knob]))
        for knob, variable in VARIABLES.items()
        if values.get(knob) not in (None, DEFAULTS[knob])
    }


def refuse_late(values: Mapping[str, Any]) -> None:
    """Raise `KnobError` for a value that MLX cannot read any more, because this process started without it."""
    for variable, text in variables(values).items():
        if AT_START[variable] != text:
            knob = next(name for name, v in VARIABLES.items() if v == variable)
            raise KnobError(
                f"{knob}={text} comes too late: MLX reads {variable} once, when it starts; "
                f"start Python with {variable}={text}"
            )


def restart_with(values: Mapping[str, Any], execute: Exec = os.execve) -> None:
    """Restart this command with the variables of the knob values in its environment, if they are not there. Call it before
    anything is read from the standard input. Raises `KnobError` if they are not there after a restart."""
    wanted = variables(values)
    if all(AT_START[variable] == text for variable, text in wanted.items()):
        return
    if os.environ.get(RESTARTED):
        refuse_late(values)
    sys.stdout.flush()
    sys.stderr.flush()
    execute(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted, RESTARTED: "1"})
