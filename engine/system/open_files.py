"""Open files: the limit of this process, raised to what a model needs.

macOS starts a process with a limit of 256, and a model of 1 T parameters has more than 100 files, each of them open twice:
for MLX, which reads the resident weights, and for the reader.

mlx-lm sets the limits to 2048 and 4096 when it is imported. Where 4096 is not allowed that raises `ValueError`, and
elsewhere it can lower a limit; `keep_limits_on_import` prevents both.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from engine.errors import HeadraceError

SPARE = 32  # for libraries, logs, pipes and sockets, beyond the files that are open and needed
MOST = 10240  # OPEN_MAX of macOS, above which setrlimit fails there


def open_files() -> int | None:
    """Number of open files of this process; None if the system does not list them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder)) - 1  # without the one that lists
    return None


def limits() -> tuple[int, int]:
    """The limit of open files and the number up to which it can be raised."""
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    return soft, min(hard, max(soft, MOST)) if sys.platform == "darwin" else hard


def ensure_open_files(files: int, what: str) -> None:
    """Raise the limit of open files, if necessary, so that `files` more can be opened. Raises `HeadraceError` if the system
    does not allow so many; `what` is what needs them."""
    needed = (open_files() or 0) + files + SPARE
    soft, most = limits()
    if needed <= soft:
        return
    if needed <= most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            return
    raise HeadraceError(
        f"{what} needs {needed} open files, and this process may have {soft}; raise the limit with ulimit -n {needed}, or "
        "in a container with --ulimit nofile"
    )


@contextlib.contextmanager
def kept_limits() -> Iterator[None]:
    """Ignore changes of the limit of open files within the block."""
    set_limit = resource.setrlimit

    def ignore(which: int, values: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            set_limit(which, values)

    resource.setrlimit = ignore
    try:
        yield
    finally:
        resource.setrlimit = set_limit


class _MlxLm(importlib.abc.MetaPathFinder):
    """Finds mlx-lm as the other finders do, with a loader that runs it within `kept_limits`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != "mlx_lm":
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next((found for finder in finders if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with kept_limits():
                    run(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def keep_limits_on_import() -> None:
    """Keep the limits when mlx-lm is imported later. No effect if it is imported already."""
    if "mlx_lm" not in sys.modules and not any(isinstance(finder, _MlxLm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MlxLm())
