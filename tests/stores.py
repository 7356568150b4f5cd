"""Packed stores and their sources: commands, damage, and logits to compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP
from mlx_lm.utils import load_model

from engine import Knobs, footprint, load
from engine.__main__ import main

Make = Callable[..., Path]
TOKENS = np.random.default_rng(7).integers(0, 255, 40)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 600
    return message


def flip(file: Path, at: int, bit: int = 0) -> None:
    with open(file, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ (1 << bit)]))


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    status = main([str(arg) for arg in args])
    return status, *capsys.readouterr()


def layer_file(path: Path, number: int = 1) -> Path:
    return next(path.glob(f"experts-{number:05d}-*"))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def logits(path: Path, **knobs: Any) -> np.ndarray:
    with load(path, Knobs(**knobs)) as engine:
        return engine.logits(TOKENS)


def by_mlx_lm(path: Path) -> np.ndarray:
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(TOKENS)[None])[0])


def streamed(path: Path, **lossy: Any) -> np.ndarray:
    """Logits with the smallest cache."""
    return logits(path, cache_gb=footprint(path, Knobs(**lossy)).one_token_gb, **lossy)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative root mean square error."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def float_weights(model: Any, block: str, projection: str) -> np.ndarray:
    """The experts' weights in mlx-lm's model, float64 [experts, rows, columns]."""
    switch = next(
        m for path, m in model.named_modules() if path.startswith(f"{block}.") and isinstance(m, SwitchGLU | SwitchMLP)
    )
    linear = switch[projection]
    if "scales" not in linear:
        return np.array(linear.weight.astype(mx.float32), np.float64)
    how = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    wide = [
        None if v is None else v.astype(mx.float32) if linear.mode == "affine" else v
        for v in (linear.scales, linear.get("biases"))
    ]
    return np.array(mx.dequantize(linear.weight, *wide, **how).astype(mx.float32), np.float64)
