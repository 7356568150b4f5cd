"""Sources: the C++ files of this folder and their fingerprint, which the extension carries.

`setup.py` and `make` run this file alone, before anything is installed, so it imports the standard library only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def sources(folder: Path = FOLDER) -> list[Path]:
    """The C++ files and headers of `folder` and its folders, in the order of their names. An installed package has none."""
    return sorted(path for path in folder.rglob("*.[ch]pp") if path.is_file())


def fingerprint(folder: Path = FOLDER) -> str:
    """A hash of the names and contents of the sources of `folder`: 16 hexadecimal digits, "" without sources."""
    state, files = hashlib.blake2b(digest_size=8), sources(folder)
    for path in files:
        content = path.read_bytes()
        state.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        state.update(content)
    return state.hexdigest() if files else ""
