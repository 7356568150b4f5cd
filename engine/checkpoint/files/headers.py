"""Safetensors headers: reads and validates them.

A wrong header would make the engine read wrong bytes as weights. Every header is therefore checked against the file and
against itself: its length, every type, shape and byte range, overlapping tensors, and repeated names.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import CheckpointError, first_line

from ..dtypes import ITEM_BYTES
from .unreadable import POINTER, refuse_pointer, unreadable

COMPARED, PLACES = 1 << 20, 16  # bytes compared of a tensor that two files have, at each of so many places
LONGEST_HEADER = 100_000_000  # the format's own limit
AGAIN = "copy it again"


class Entry(NamedTuple):
    """One tensor: its type (safetensors name), its shape, the number of its file, and its byte offset in that file."""

    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_headers(files: Sequence[Path]) -> dict[str, Entry]:
    """All tensors of the files, by name. Raises `CheckpointError` for an invalid header, and for two different tensors with
    one name: mlx-lm would take the one in the file that the folder happens to list last."""
    tensors: dict[str, Entry] = {}
    with garbage_collection_off():
        for number, file in enumerate(files):
            header, start, size = _header(file)
            spans = []
            for name, described in header.items():
                dtype, shape, begin, end = _described(file, name, described, size - start)
                entry = Entry(dtype, shape, number, start + begin)
                if name in tensors and not _are_equal(files, tensors[name], entry):
                    raise CheckpointError(
                        f"{file}: {name} is in {files[tensors[name].file].name} as well, and the two differ; remove the "
                        "file that is not of this model"
                    )
                tensors[name] = entry
                if begin < end:
                    spans.append((begin, end, name))
            _no_overlap(file, spans)
    return tensors


@contextlib.contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Disable garbage collection: it would scan a million new, permanent objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _are_equal(files: Sequence[Path], one: Entry, other: Entry) -> bool:
    """Whether two tensors are the same, by their bytes: all of them up to 16 MiB, otherwise those at 16 places."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    count = min(COMPARED, one.nbytes)
    places = {(one.nbytes - count) * n // (PLACES - 1) for n in range(PLACES)}
    with open(files[one.file], "rb") as first, open(files[other.file], "rb") as second:
        return all(
            os.pread(first.fileno(), count, one.offset + at) == os.pread(second.fileno(), count, other.offset + at)
            for at in sorted(places)
        )


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header's entries without metadata, the offset at which the data starts, and the file's size."""
    try:
        with open(file, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if not size:
                raise CheckpointError(f"{file} is empty; {AGAIN}")
            start = f.read(len(POINTER))
            refuse_pointer(file, start)
            f.seek(8)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(f"{file} is truncated: it has {size} bytes, its header alone {length}; {AGAIN}")
            if length > LONGEST_HEADER:
                raise CheckpointError(
                    f"{file} has a damaged header: {length} bytes are above the limit of {LONGEST_HEADER}; {AGAIN}"
                )
            header = json.loads(f.read(length), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{file} has a damaged header ({first_line(e)}); {AGAIN}") from e
    except OSError as e:
        raise unreadable(file, e) from e
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a damaged header: it is not a JSON object; {AGAIN}")
    header.pop("__metadata__", None)
    return header, 8 + length, size


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _described(file: Path, name: str, described: Any, data_bytes: int) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, begin and end of one tensor, from its entry in the header."""
    try:
        dtype, shape, (begin, end) = described["dtype"], tuple(described["shape"]), described["data_offsets"]
        numbers = (*shape, begin, end)
        sound = name.isprintable() and {*map(type, numbers)} == {int} and min(numbers) >= 0
        item_bytes = ITEM_BYTES.get(dtype)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file}: {name!r} has a damaged entry in the header; {AGAIN}")
    if item_bytes is None:
        raise CheckpointError(f"{file}: {name} has the unknown dtype {dtype!r} (known: {', '.join(ITEM_BYTES)}); {AGAIN}")
    if not begin <= end <= data_bytes:
        raise CheckpointError(
            f"{file} is truncated or its header damaged: {name} lies at bytes {begin} to {end} of {data_bytes}; {AGAIN}"
        )
    if math.prod(shape) * item_bytes != end - begin:
        raise CheckpointError(
            f"{file}: {name} takes {math.prod(shape) * item_bytes} bytes as {dtype} of shape {list(shape)}, "
            f"but has {end - begin}; {AGAIN}"
        )
    return dtype, shape, begin, end


def _no_overlap(file: Path, spans: list[tuple[int, int, str]]) -> None:
    spans.sort()
    for (_, end, name), (begin, _, following) in itertools.pairwise(spans):
        if begin < end:
            raise CheckpointError(f"{file}: {name} ends at byte {end}, but {following} begins at {begin}; {AGAIN}")
