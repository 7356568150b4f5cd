"""Loading: imports the extension, and refuses one that is missing, of another machine, or older than its sources."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

from engine.errors import HeadraceError, first_line

from .sources import FOLDER, fingerprint

NAME, FILE = "engine.native._core", "_core.abi3.so"
REMEDY = "build it with a C++ compiler: pip install -e . in the checkout"


def built(folder: Path = FOLDER) -> Path:
    """The extension's file: the one that `HEADRACE_NATIVE` names, by default that of `folder`."""
    return Path(os.environ.get("HEADRACE_NATIVE") or folder / FILE)


def load(folder: Path = FOLDER) -> ModuleType:
    """The extension. In a checkout its fingerprint is compared with the sources beside it. Raises `HeadraceError` with the
    remedy."""
    path = built(folder)
    if not path.exists():
        raise HeadraceError(f"the native core is not built ({path} is missing); {REMEDY}")
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None:
        raise HeadraceError(f"HEADRACE_NATIVE={path} is no extension module of Python; name its file, which ends in .so")
    try:
        core = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(core)
    except ImportError as e:
        raise HeadraceError(f"the native core was built for another machine or Python ({first_line(e)}); {REMEDY}") from e
    if fingerprint(folder) not in ("", getattr(core, "SOURCES", None)):
        raise HeadraceError(f"the native core is older than its sources in {folder}; {REMEDY}")
    return core
