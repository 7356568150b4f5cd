"""Unreadable files: one line for each reason why a checkpoint's file cannot be read, with the remedy that fits it."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import CheckpointError

HUB = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)$")
POINTER = b"version https://git-lfs.github.com/spec/"
UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2")  # suffixes that download programs use


def unreadable(file: Path, e: OSError) -> CheckpointError:
    """The error for a file or folder that the system does not read."""
    if isinstance(e, PermissionError):
        remedy = "give this user the right to read it"
    elif isinstance(e, FileNotFoundError) and file.is_symlink():
        remedy = download(file.parent) or "copy the file itself there"
        return CheckpointError(f"{file} is a link to {file.readlink()}, which does not exist; {remedy}")
    else:
        remedy = "make it a readable file, or copy it again"
    return CheckpointError(f"{file} cannot be read ({e.strerror or e}); {remedy}")


def refuse_pointer(file: Path, content: bytes) -> None:
    """Raises `CheckpointError` if the file holds only Git LFS's note about the file."""
    if content.startswith(POINTER):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself; run git lfs pull in {file.parent}")


def download(path: Path) -> str:
    """The remedy for files missing from the folder `path` if it was downloaded; empty for any other folder."""
    if hub := HUB.search(path.absolute().as_posix()):
        return f"finish its download: hf download {hub['owner']}/{hub['name']} --revision {hub['revision']}"
    try:
        places = [*path.iterdir(), *(path / ".cache" / "huggingface" / "download").rglob("*")]
        partial = sorted(file.name for file in places if file.suffix in UNFINISHED)
    except OSError:
        return ""
    return f"finish its download ({partial[0]:.120} is a part of it)" if partial else ""
