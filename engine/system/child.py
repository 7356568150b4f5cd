"""Child processes: the environment in which a Python child imports these packages."""

from __future__ import annotations

import os

from .shipped import PACKAGES


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment with the packages' folder first on PYTHONPATH, and the variables in `more`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")])), **more}
