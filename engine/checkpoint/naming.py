"""The name that people know a model by: that of the folder it was opened from."""

from __future__ import annotations

import os
import re
from pathlib import Path

PLAIN = re.compile(r"(?i)checkpoint|model|mlx|snapshot|weights|(?=.*\d)[0-9a-f]{7,64}")  # says nothing of which model it is
HUB = re.compile(r"models--([^/]+)/snapshots/[^/]+$")


def model_name(path: str | Path) -> str:
    """`owner/name` for a snapshot in the hub's cache; else the folder's name, or that of the nearest folder around it that
    says something. Links are not followed: a link is called what the user called it."""
    place = Path(os.path.abspath(Path(path).expanduser()))
    if hub := HUB.search(place.as_posix()):
        return hub[1].replace("--", "/", 1)
    return next((part.name for part in (place, *place.parents) if part.name and not PLAIN.fullmatch(part.name)), place.name)
