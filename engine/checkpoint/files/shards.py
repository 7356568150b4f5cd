"""Shards: the safetensors files of a folder, and the index beside them.

The files are the truth. mlx-lm reads every file that matches `model*.safetensors`, and no index. The built model decides
which tensors are needed (`engine.checkpoint.built.needed`). The index is a hint. If it belongs to these files, it names the
shard to copy; if it lists exactly their tensors, the files are taken as whole where the decision would take seconds.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

from ..built.needed import Described, missing
from .headers import Entry
from .unreadable import download, unreadable

PATTERN = "model*.safetensors"  # the files that mlx-lm reads
INDEX = "model.safetensors.index.json"
NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<of>\d+)\.safetensors")
MANY = 100_000  # tensors; checking more takes seconds
OTHERS = (".safetensors", ".bin", ".pth", ".gguf")  # suffixes of weights that mlx-lm does not read


_complete: set[str] = set()  # checkpoints found complete by this process; a study opens one before each setting


@dataclass(frozen=True)
class Index:
    """An index: the file of each tensor. Only entries for files that mlx-lm reads are kept."""

    shard_of: Mapping[str, str]

    def lists(self, tensors: Mapping[str, str]) -> bool:
        """Whether the index lists exactly these tensors, each in its file."""
        return self.shard_of == tensors

    def belongs_to(self, tensors: Mapping[str, str]) -> bool:
        """Whether the index describes the files that are there, though others may be missing."""
        names = set(tensors.values())
        return {name: shard for name, shard in self.shard_of.items() if shard in names} == tensors


def check_folder(path: Path) -> None:
    """Raises `CheckpointError` unless `path` is a folder."""
    try:
        found = stat.S_ISDIR(path.stat().st_mode)
    except PermissionError as e:
        raise unreadable(path, e) from e
    except (OSError, ValueError):
        found = False
    if not found:
        raise CheckpointError(f"checkpoint {path} is not a folder; give the folder that holds config.json")


def shard_files(path: Path) -> tuple[Path, ...]:
    """The files that mlx-lm reads from the folder. Raises `CheckpointError` if there are none."""
    try:
        names = sorted(file.name for file in path.iterdir())
    except OSError as e:
        raise unreadable(path, e) from e
    files = tuple(path / name for name in names if fnmatchcase(name, PATTERN))
    if not files:
        others = [name for name in names if name.endswith(OTHERS)]
        there = f", but {others[0]}" if others else ""
        raise CheckpointError(
            f"checkpoint {path} has no {PATTERN}{there}; {download(path) or 'copy the shards of the model there'}"
        )
    return files


def read_index(path: Path) -> Index | None:
    """The index in the folder; None if there is none or it cannot be read as one."""
    try:
        shard_of = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return Index({name: shard for name, shard in shard_of.items() if fnmatchcase(shard, PATTERN)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def check_complete(
    path: Path,
    config: Mapping[str, Any],
    files: Sequence[Path],
    tensors: Mapping[str, Entry],
    digest: str,
    replaced: Iterable[Described] = (),
) -> None:
    """Raises `CheckpointError` if a tensor that the model needs is missing. `files` are those that mlx-lm reads, the first
    ones of `tensors`; `digest` is one of all arguments but files; `replaced` are the tensors that a packed store has in its
    own files."""
    if digest in _complete:
        return
    names = [file.name for file in files]
    shard_of = {name: names[entry.file] for name, entry in tensors.items() if entry.file < len(names)}
    index = read_index(path)
    if index is not None and len(shard_of) > MANY and index.lists(shard_of):
        return
    described = ((name, tensors[name].dtype, tensors[name].shape) for name in shard_of)
    lost = missing(config, [*replaced, *described])
    if not lost:
        _complete.add(digest)
        return
    hinted = index is not None and index.belongs_to(shard_of)
    absent = sorted({*index.shard_of.values()} - {*names}) if index is not None and hinted else missing_numbers(names)
    if absent:
        raise CheckpointError(
            f"checkpoint {path} lacks {len(absent)} of {len(names) + len(absent)} shards ({absent[0]:.80} is the first) and "
            f"{lost[0]:.120}, which mlx-lm needs by its config.json; {download(path) or 'copy them there'}"
        )
    what = f"{lost[0]:.120}" if len(lost) == 1 else f"{len(lost)} tensors ({lost[0]:.120} is the first)"
    raise CheckpointError(
        f"checkpoint {path} lacks {what}, which mlx-lm needs by its config.json; "
        f"{download(path) or 'copy its shards again, or the config.json that belongs to them'}"
    )


def missing_numbers(names: list[str]) -> list[str]:
    """The files that are not there of those numbered `-00001-of-00003.safetensors`."""
    found: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if m := NUMBERED.fullmatch(name):
            found.setdefault((m["stem"], m["of"]), set()).add(int(m["number"]))
    return [
        f"{stem}-{number:0{len(of)}}-of-{of}.safetensors"
        for (stem, of), numbers in found.items()
        for number in range(1, min(int(of), 100_000) + 1)
        if number not in numbers
    ]
