"""LM Studio: the folder of its models, ORG/NAME inside it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engine.system.shipped import home

POINTER = ".lmstudio-home-pointer"  # names LM Studio's folder if the user has moved it
FOLDERS = (".lmstudio", ".cache/lm-studio")  # the second one until version 0.3


def model_folders() -> list[Path]:
    """The folders in which LM Studio may keep models, whether or not they exist; empty for an account without a home."""
    if (start := home()) is None:
        return []
    places = [start / name for name in FOLDERS]
    with contextlib.suppress(OSError, ValueError, IndexError):
        places.insert(0, Path((start / POINTER).read_text(encoding="utf-8").strip().splitlines()[0]))
    return [place / "models" for place in dict.fromkeys(places)]


def in_lm_studio(name: str) -> Path | None:
    """The folder of the model ORG/NAME; None if it is not there."""
    return next((folder / name for folder in model_folders() if _is_folder(folder / name)), None)


def name_in_lm_studio(path: Path) -> str | None:
    """ORG/NAME of a model's folder in LM Studio's; None for another folder."""
    for folder in model_folders():
        if path.parent.parent == folder:
            return f"{path.parent.name}/{path.name}"
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
