"""Rehearsal: the file that marks a store of random weights, `rehearsal.json`.

Whatever is measured on such a store has the mark in the model's name, so no figure can be taken for that of the real model.
The file also says how routing is made up, and which files were written, so that exactly those can be removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, first_line
from engine.system.strict_json import from_json, to_json

NAME = "rehearsal.json"
ABOUT = "rehearsal: random weights"
VERSION = 1


@dataclass(frozen=True)
class Rehearsal:
    """The content of `rehearsal.json`."""

    shape: str
    routing: Mapping[str, Any]  # parameters of `engine.routing.synthetic`
    window_recall: tuple[float, ...]  # prediction recall of rejected passes: the first one, and later ones
    files: tuple[str, ...]  # names of all files written, this one included

    @property
    def model(self) -> str:
        """The model's name in every row, report and message."""
        return f"{self.shape} ({ABOUT})"

    def as_json(self) -> str:
        content = {
            "version": VERSION, "about": ABOUT, "shape": self.shape, "routing": dict(self.routing),
            "window_recall": list(self.window_recall), "files": list(self.files),
        }  # fmt: skip
        return to_json(content, indent=1) + "\n"


def read_rehearsal(path: Path) -> Rehearsal | None:
    """The mark in the folder `path`; None if it is no rehearsal. Raises `CheckpointError` for a damaged file."""
    file = path / NAME
    try:
        content = from_json(file.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise CheckpointError(
                f"{file} has version {content['version']}, but this version reads {VERSION}; write it again"
            )
        files = tuple(content["files"])
        if any(Path(name).name != name for name in files):
            raise ValueError("it names files outside of its folder")
        return Rehearsal(str(content["shape"]), dict(content["routing"]), tuple(map(float, content["window_recall"])), files)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{file} is damaged ({first_line(e)}); remove its folder and rehearse again") from e
