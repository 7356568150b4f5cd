"""Kernel cache: keeps the kernels that MLX compiles for an NVIDIA GPU from one run to the next.

MLX compiles many of its CUDA kernels at first use, one module for each type, width, group size and tile, which takes
seconds a module. It stores them in MLX_PTX_CACHE_DIR, by default in `mlx/VERSION/ptx` among the temporary files
(mlx/backend/cuda/jit_module.cpp). That folder is lost at a restart and belongs to the first user of the machine: for other
users each process compiles anew, without a message. This module sets the variable to a folder in the user's cache. Its name
has MLX's version and the GPUs, because MLX looks modules up by name alone and machines may share a home folder.

This module imports no MLX; `engine` calls it before MLX is imported, and children inherit the variable.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from engine.system.user_cache import lasting_file

VARIABLE = "MLX_PTX_CACHE_DIR"
DRIVER = Path("/proc/driver/nvidia/gpus")  # the driver's list: a folder for each GPU, whose `information` has its model


def keep_kernels(driver: Path = DRIVER) -> None:
    """Set MLX's folder of compiled kernels to one in the user's cache, unless the variable is set. Nothing changes without
    an NVIDIA GPU or without a cache folder that can be written; `headrace doctor` shows the folder in use."""
    own = lasting_file("kernels")
    if own is None:
        return
    with contextlib.suppress(OSError):
        if VARIABLE not in os.environ and (name := _name(driver)):
            (own / name).mkdir(parents=True, exist_ok=True)
            if os.access(own / name, os.W_OK):
                os.environ[VARIABLE] = str(own / name)
        if VARIABLE in os.environ and Path(os.environ[VARIABLE]).parent == own:
            remove_incomplete(Path(os.environ[VARIABLE]))


def kernels() -> int:
    """The number of kernel modules that MLX on CUDA has compiled so far."""
    return sum(1 for _ in kernel_folder().rglob("*.ptx"))


def kernel_folder() -> Path:
    """The folder where MLX on CUDA looks for compiled kernels in this process."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / "mlx" / _version() / "ptx"


def remove_incomplete(folder: Path) -> None:
    """Remove modules whose writing was interrupted, such as by a time limit. MLX writes their source last. It would load an
    incomplete module at every later start, and fail."""
    for module in folder.rglob("*.ptx"):
        source = module.with_suffix(".cu")
        if not source.exists() or not source.stat().st_size:
            module.unlink(missing_ok=True)


def _name(driver: Path) -> str | None:
    """MLX's version and the models of the GPUs; None without a GPU."""
    models = set()
    for information in driver.glob("*/information"):
        models.update(re.findall(r"^Model:\s*(.+?)\s*$", information.read_text(errors="replace"), re.MULTILINE))
    return "-".join([_version(), *(re.sub(r"\W+", "_", model) for model in sorted(models))]) if models else None


def _version() -> str:
    from importlib.metadata import version  # its import takes longer than the rest, and few machines need it

    return version("mlx")
