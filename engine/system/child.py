"""Child processes: the environment in which a Python child imports this checkout."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment with this checkout first on PYTHONPATH, and the variables in `more`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), **more}
