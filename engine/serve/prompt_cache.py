"""Prompt cache: KV caches of prompt prefixes that were computed before, in memory and on disk.

It has the methods of mlx-lm's `LRUPromptCache`, which its server calls. Unlike that class, it always leaves a token to
compute, it keeps what was used last, and it evaluates what it keeps, so that `nbytes` is memory in use. A prefix is found by
comparing token arrays, without a dictionary for every token. With a folder, prefixes are written there between requests and
are found again after a restart.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from engine.errors import first_line
from engine.generation.trimming import common_prefix, cut_copy, size_of, trimmable, usable
from engine.knobs import GB
from engine.prompt_cache.file import PrefixFile
from engine.prompt_cache.folder import PrefixFolder

from .writer import Writer

MOST_ENTRIES = 32
KINDS = ("assistant", "user", "system")
WORTH_TOKENS, WORTH_SHARE = 16, 1 / 8  # a file is read if it saves as many tokens more, and that share of its own tokens


@dataclass(eq=False)
class Entry:
    """One prefix in memory. `tokens` is int64 [tokens]; `used` orders entries by last use."""

    model: Any
    tokens: np.ndarray
    cache: list[Any]
    trimmable: bool
    kind: str
    nbytes: int
    used: int
    file: PrefixFile | None = field(default=None)


class PromptCache:
    """Prefixes in memory up to `max_bytes` and `max_size` entries, and in `folder` up to its own limit.

    Set `busy` to a function that says whether a request is being computed; files are written while it is not. All methods
    but `close` and the counters are called on the thread that generates.
    """

    def __init__(
        self,
        max_size: int = MOST_ENTRIES,
        max_bytes: int = 1 << 63,
        *,
        folder: PrefixFolder | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.max_size = max_size
        self.max_bytes = max_bytes
        self.folder = folder
        self._say = say
        self._said_large = False
        self._clock = itertools.count()
        self._entries: list[Entry] = []
        self._lock = threading.RLock()
        self.busy: Callable[[], bool] = lambda: False
        self._writer = None if folder is None else Writer(self._save, lambda: self.busy())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches in memory, including one that is still being written after its eviction."""
        with self._lock:
            writing = self._writer.current if self._writer is not None else None
            gone = [writing] if writing is not None and writing not in self._entries else []
            return sum(entry.nbytes for entry in [*self._entries, *gone])

    def stats_by_type(self) -> dict[str, dict[str, int]]:
        """For each kind of prefix, `n_sequences` and `n_bytes` in memory."""
        with self._lock:
            of = {kind: [e.nbytes for e in self._entries if e.kind == kind] for kind in KINDS}
        return {kind: {"n_sequences": len(sizes), "n_bytes": sum(sizes)} for kind, sizes in of.items()}

    def fetch_nearest_cache(self, model: Any, tokens: Sequence[int]) -> tuple[list[Any] | None, list[int]]:
        """The cache of the longest known prefix of a prompt, cut to it, and the tokens that are left: at least one."""
        tokens = list(tokens)
        prompt = np.asarray(tokens, dtype=np.int64)
        with self._lock:
            self._load_better(model, prompt)
            found = [(usable(e.tokens, e.trimmable, prompt), e) for e in self._entries if e.model == model]
            for saved, entry in sorted(found, key=lambda one: one[0], reverse=True):
                cache = cut_copy(entry.cache, len(entry.tokens) - saved) if saved else None
                if cache is not None:
                    self._use(entry)
                    return cache, tokens[saved:]
        return None, tokens

    def insert_cache(
        self, model: Any, tokens: Sequence[int], prompt_cache: list[Any], *, cache_type: str = "assistant"
    ) -> None:
        """Keep a cache under its tokens. The cache must not be changed afterwards. One above `max_bytes` is not kept."""
        size = size_of(prompt_cache)
        if size > self.max_bytes:
            self._say_large(len(tokens), size)
            return
        mx.eval([c.state for c in prompt_cache])
        ids = np.asarray(list(tokens), dtype=np.int64)
        can_cut = trimmable(prompt_cache)
        entry = Entry(model, ids, prompt_cache, can_cut, cache_type, size, next(self._clock))
        with self._lock:
            for other in [e for e in self._entries if e.model == model]:
                common = common_prefix(other.tokens, ids)
                if common == len(ids) < len(other.tokens) and other.trimmable and can_cut:
                    self._use(other)  # it already holds this prefix
                    return
                if common == len(other.tokens) and (can_cut or len(ids) == common):
                    self._drop(other)
            self._add(entry)
        if self._writer is not None:
            self._writer.add(entry)

    def trim_to(self, *, n_sequences: int | None = None, n_bytes: int | None = None) -> None:
        """Drop the least recently used entries until at most so many, and so many bytes, are in memory."""
        with self._lock:
            while self._entries and (
                (n_sequences is not None and len(self._entries) > max(0, n_sequences))
                or (n_bytes is not None and sum(e.nbytes for e in self._entries) > max(0, n_bytes))
            ):
                self._drop(min(self._entries, key=lambda e: e.used))

    def close(self, timeout: float = 30.0) -> None:
        """Write the prefixes that wait, for at most `timeout` seconds, and end the writer."""
        if self._writer is not None:
            self._writer.close(timeout)

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.trim_to(n_sequences=self.max_size, n_bytes=self.max_bytes)

    def _say_large(self, tokens: int, size: int) -> None:
        if self.max_bytes > 0 and not self._said_large:
            limit = f"above --prompt-cache-gb {self.max_bytes / GB:.3g}"
            self._say(f"prompt cache: {tokens} tokens take {size / GB:.3g} GB, {limit}, and are not kept; raise it")
        self._said_large = True

    def _drop(self, entry: Entry) -> None:
        self._entries.remove(entry)
        if self._writer is not None:
            self._writer.discard(entry)

    def _use(self, entry: Entry) -> None:
        entry.used = next(self._clock)
        if self.folder is not None and entry.file is not None:
            self.folder.touch(entry.file)

    def _load_better(self, model: Any, prompt: np.ndarray) -> None:
        """Load the file that saves the most tokens if it saves notably more than memory does."""
        if self.folder is None:
            return
        saved = [usable(e.tokens, e.trimmable, prompt) for e in self._entries if e.model == model]
        best = max(saved, default=0)
        files = [(usable(f.tokens, f.trimmable, prompt), f) for f in self.folder.refresh()]
        for saves, file in sorted(files, key=lambda one: one[0], reverse=True):
            if saves - best < max(WORTH_TOKENS, WORTH_SHARE * len(file.tokens)) or file.nbytes > self.max_bytes:
                continue
            self.trim_to(n_bytes=self.max_bytes - file.nbytes)
            cache = self.folder.load(file)
            if cache is not None:
                size = size_of(cache)
                self._add(Entry(model, file.tokens, cache, file.trimmable, file.kind, size, next(self._clock), file))
                return

    def _save(self, entry: Entry) -> None:
        if self.folder is None:
            return
        try:
            entry.file = self.folder.save(entry.tokens, entry.cache, entry.kind)
        except Exception as e:
            self._say(f"prompt cache: {self.folder.path} cannot be written ({first_line(e)})")
