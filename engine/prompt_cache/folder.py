"""Prefix folder: the prefixes on disk of one model and setting, up to a limit in bytes; the least recently used go first.

Processes may share a folder. Each reads the list of files again before a lookup, a file appears complete under its name or
not at all, and a file that has gone is a miss. The limit counts the files of all models. The order of last use is in the
files' modification times: a use sets it above all others, so the order holds whatever the clocks of machines and of a
network share say. Prompts are private: the folder is created with mode 0700, and files have mode 0600.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import HeadraceError, first_line
from engine.generation.trimming import common_prefix, size_of
from engine.knobs import GB
from engine.system.atomic import cannot_write

from .file import (
    SUFFIX,
    TEMPORARY,
    PrefixError,
    PrefixFile,
    digest_of,
    is_abandoned,
    key_of,
    load_prefix,
    read_header,
    unsaveable,
    write_prefix,
)

USE_NS = 2_000_000_000  # between the times of two uses: no filesystem keeps times in longer steps
LEFT_FREE = 64 << 20  # bytes of the disk that are never used


@dataclass(frozen=True)
class Words:
    """What messages call the folder and its limit, and what follows for a prefix that is not written."""

    folder: str
    limit: str
    otherwise: str


class PrefixFolder:
    """The files of one key in a folder. `say` receives one line for each thing that a user should know, in `words`.

    Raises `HeadraceError` if the folder cannot be created or written.
    """

    def __init__(self, path: Path, key: str, limit: int, say: Callable[[str], None], words: Words) -> None:
        self.path = path
        self.limit = limit
        self._key = key
        self._say, self._words = say, words
        self._said: set[str] = set()
        self._files: dict[str, PrefixFile] = {}
        self._uses: dict[str, int] = {}  # of this process, for a filesystem that does not keep times
        self._next_use = itertools.count(1)
        self._lock = threading.Lock()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_stale()
        except OSError as e:
            raise HeadraceError(f"{words.folder}: {cannot_write(path, e)}") from e
        if not os.access(path, os.W_OK | os.X_OK):
            raise HeadraceError(f"{words.folder}: {path} is not writable; make it writable, or give another folder")
        self._make_room(0)
        self.refresh()

    def others(self, tokens: np.ndarray | None = None) -> int:
        """Count of the files of another model, setting or version: of these tokens, or all."""
        ours = "" if tokens is None else digest_of(tokens)
        return sum(key_of(name) not in (self._key, None) and ours in name for name, _, _ in self._listed())

    def find(self, tokens: np.ndarray) -> PrefixFile | None:
        """The file of exactly these tokens; None if there is none."""
        return next((f for f in self.refresh() if np.array_equal(f.tokens, tokens)), None)

    @property
    def nbytes(self) -> int:
        """Bytes of all prefix files in the folder."""
        return sum(size for _, size, _ in self._listed())

    def __len__(self) -> int:
        return len(self._files)

    def refresh(self) -> list[PrefixFile]:
        """Read the list of files again; returns those of this key. A damaged file is reported and removed."""
        names = {name for name, _, _ in self._listed() if key_of(name) == self._key}
        with self._lock:
            for name in self._files.keys() - names:
                del self._files[name]
            for name in names - self._files.keys():
                try:
                    self._files[name] = read_header(self.path / name)
                except FileNotFoundError:
                    continue
                except (PrefixError, OSError) as e:
                    self._reject(name, e)
            return list(self._files.values())

    def load(self, file: PrefixFile) -> list[Any] | None:
        """The cache in a file; None if it is damaged, which is reported, or has gone."""
        try:
            cache = load_prefix(file)
        except (PrefixError, OSError, MemoryError) as e:
            with self._lock:
                self._files.pop(file.path.name, None)
                if not isinstance(e, FileNotFoundError):
                    self._reject(file.path.name, e)
            return None
        self.touch(file)
        return cache

    def reject(self, file: PrefixFile, e: BaseException) -> None:
        """Report and remove a file whose content is not what it should be."""
        with self._lock:
            self._reject(file.path.name, e)

    def touch(self, file: PrefixFile) -> None:
        """Record that a file was used after all others."""
        self._uses[file.path.name] = next(self._next_use)
        last = max((at for _, _, at in self._listed()), default=0) + USE_NS
        with contextlib.suppress(OSError):
            os.utime(file.path, ns=(last, last))

    def save(self, tokens: np.ndarray, cache: list[Any], kind: str) -> PrefixFile | None:
        """Write a prefix, after the least recently used files have made room; None if it stays in memory only.

        Files of prefixes that can be cut out of this one are removed.
        """
        need = size_of(cache) + (64 << 10) + 8 * len(tokens)
        refused = self._refusal(need, tokens, cache)
        if refused is None:
            try:
                self._make_room(need)
                free = os.statvfs(self.path)
                if free.f_bavail * free.f_frsize < need + LEFT_FREE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                file = write_prefix(self.path, self._key, tokens, cache, kind)
            except OSError as e:
                refused = "full", cannot_write(self.path, e)
            except (RuntimeError, ValueError, MemoryError) as e:
                refused = "full", f"{self.path} cannot be written ({first_line(e)})"
        if refused is not None:
            self._once(*refused)
            return None
        self._said.discard("full")
        self.touch(file)
        with self._lock:
            self._files[file.path.name] = file
            shorter = [f for f in self._files.values() if file.trimmable and _begins(f.tokens, tokens)]
            for one in shorter:
                self._remove(one.path.name)
        return file

    def _refusal(self, need: int, tokens: np.ndarray, cache: list[Any]) -> tuple[str, str] | None:
        """Why a prefix of `need` bytes is not written: the kind of reason and its text."""
        unknown = unsaveable(cache)
        if unknown:
            return unknown, f"mlx-lm's file format cannot hold {unknown}"
        if need > self.limit:
            text = f"{len(tokens)} tokens take {need / GB:.3g} GB, above {self._words.limit} {self.limit / GB:.3g}; raise it"
            return "limit", text
        return None

    def _make_room(self, need: int) -> None:
        files = sorted(self._listed(), key=lambda f: (f[2], self._uses.get(f[0], 0)))
        total = need + sum(size for _, size, _ in files)
        for name, size, _ in files:
            if total <= self.limit:
                return
            with self._lock:
                self._remove(name)
            total -= size

    def _listed(self) -> list[tuple[str, int, int]]:
        """Name, bytes and modification time, ns, of every prefix file."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and key_of(entry.name):
                    with contextlib.suppress(OSError):
                        status = entry.stat()
                        found.append((entry.name, status.st_size, status.st_mtime_ns))
        return found

    def _remove_stale(self) -> None:
        begin, end = TEMPORARY
        for path in self.path.glob(f"{begin}*{end}"):
            with contextlib.suppress(FileNotFoundError):
                if is_abandoned(path):
                    path.unlink()

    def _remove(self, name: str) -> None:
        self._files.pop(name, None)
        self._uses.pop(name, None)
        with contextlib.suppress(OSError):
            (self.path / name).unlink(missing_ok=True)

    def _reject(self, name: str, e: BaseException) -> None:
        self._say(f"prompt cache: {first_line(e)}; it is removed from {self.path}")
        self._remove(name)

    def _once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._say(f"prompt cache: {text}; {self._words.otherwise}")


def _begins(short: np.ndarray, long: np.ndarray) -> bool:
    return len(short) < len(long) and common_prefix(short, long) == len(short)
