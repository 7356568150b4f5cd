"""Records of a packed layer: the experts at each choice of levels, their checksums and their errors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import CheckpointError, ReadError
from engine.native import core

from ..experts import INT4_BITS, INT4_ZERO, ExpertLayer, ExpertTensor
from ..files.headers import Entry
from .bitplanes import column_order
from .description import Description, Layer, Section


class LayerRecords:
    """The records of one layer in `file`, whose tensors are `records`, `errors` and `checksums`."""

    def __init__(self, layer: Layer, file: Path, records: Entry, errors: Entry, checksums: Entry) -> None:
        self.levels = layer.levels
        self.file = file
        self._layer = layer
        self._records = records
        self._checksums = checksums
        self._errors = errors

    @cached_property
    def checksums(self) -> np.ndarray:
        """uint32 [experts, sections + 1]; the last one covers the errors."""
        return self._load(self._checksums, np.uint32)

    @cached_property
    def errors(self) -> np.ndarray:
        """float64 [experts, projections, levels]: squared error relative to the weights' squares."""
        return self._load(self._errors, np.float64)

    def at_top(self) -> ExpertLayer:
        """The experts at the highest level."""
        return self.layer(dict.fromkeys((p.name for p in self._layer.projections), self.levels[-1]))

    def layer(self, widths: Mapping[str, int]) -> ExpertLayer:
        """The experts at these bits per projection."""
        tensors: list[ExpertTensor] = []
        zeros: dict[str, float] = {}
        top = self.levels[-1]
        for p in self._layer.projections:
            level = self.levels.index(widths[p.name])
            own = [(n, s) for n, s in enumerate(self._layer.sections) if s.projection == p.name]
            codes = [self._tensor(n, s) for n, s in own if s.tensor == "codes" and s.level <= level]
            shape = (p.rows, p.columns * self.levels[level] // 32)
            order = column_order(top, len(self.levels) - 1 - level) if level < len(self.levels) - 1 else None
            upper, parts = codes[0], tuple(codes) if len(codes) > 1 else ()
            tensors.append(
                ExpertTensor(
                    p.name, "weight", "U32", shape, upper.file, upper.offset, parts, self.levels[level], order, upper.section
                )
            )
            tensors += [self._tensor(n, s) for n, s in own if s.tensor in ("scales", "biases") and s.level == level]
            tensors += [self._tensor(n, s) for n, s in own if s.tensor == "bias"]
            if p.symmetric:
                zeros[p.name] = zero_code(self.levels[level])
        return ExpertLayer(self._layer.block, tuple(sorted(tensors, key=lambda t: t.name)), zeros, self)

    def damaged(self, expert: int, section: int) -> ReadError:
        """The error for a section of an expert whose bytes do not have the checksum that was taken at packing."""
        return ReadError(
            f"{self._layer.block} expert {expert} is damaged: the checksum of its {self._section_name(section)} "
            "differs from the one taken at packing; copy the store's file again, or pack the model again"
        )

    def damage(self, fd: int, expert: int) -> list[str]:
        """Read a whole record and compare its checksums. Returns one line for each damaged section."""
        at = self._records.offset + expert * self._layer.record_bytes
        record = memoryview(os.pread(fd, self._layer.record_bytes, at))
        parts = [record[s.offset : s.offset + s.nbytes] for s in self._layer.sections]
        sums = [*map(core.crc32, parts), core.crc32(self.errors[expert].tobytes())]
        names = [*map(self._section_name, range(len(parts))), "table of errors"]
        bad = [name for name, found, packed in zip(names, sums, self.checksums[expert], strict=True) if found != packed]
        if any(record[self._layer.used_bytes :]):
            bad.append("padding of the last page")
        return [f"{self.file.name}: {self._layer.block} expert {expert}: {name} is damaged" for name in bad]

    def _section_name(self, number: int) -> str:
        """A section's name for people: `gate_proj scales of 2 bits`."""
        section = self._layer.sections[number]
        return f"{section.projection} {section.tensor} of {self.levels[section.level]} bits"

    def _tensor(self, number: int, section: Section) -> ExpertTensor:
        experts = np.arange(self._layer.experts, dtype=np.int64)
        offset = self._records.offset + experts * self._layer.record_bytes + section.offset
        file = np.full(len(experts), self._records.file, np.int32)
        return ExpertTensor(section.projection, section.tensor, section.dtype, section.shape, file, offset, section=number)

    def _load(self, entry: Entry, dtype: Any) -> np.ndarray:
        return np.fromfile(self.file, dtype, math.prod(entry.shape), offset=entry.offset).reshape(entry.shape)


def open_records(
    description: Description, tensors: Mapping[str, Entry], files: tuple[Path, ...]
) -> tuple[LayerRecords, ...]:
    """The records of every layer, from the headers of `files`, whose numbers are in `tensors`. Raises `CheckpointError` if a
    layer's file was not packed with this description."""
    out = []
    named = {file.name: file for file in files}
    for layer in description.layers:
        file, header = named[layer.file], layer.header(description.digest)
        with open(file, "rb") as f:
            if f.read(len(header)) != header:
                raise CheckpointError(
                    f"{file} belongs to another store (its header differs); copy it again, or pack the model again"
                )
        out.append(LayerRecords(layer, file, *(tensors[name] for name in layer.tensors)))
    return tuple(out)


def unwritten(layer: Layer) -> ExpertLayer:
    """The experts of a layer whose file does not exist yet, at the highest level: shapes and types, but no valid offsets."""
    return LayerRecords(
        layer, Path(layer.file), *(Entry(dtype, shape, 0, 0) for dtype, shape in layer.tensors.values())
    ).at_top()


def zero_code(bits: int) -> float:
    """The code of a zero weight of INT4 without zero points, at another width. Below 4 bits several codes share one; the
    middle of them stands for all."""
    together = 2.0 ** (INT4_BITS - bits)
    return (INT4_ZERO - max(0.0, together - 1) / 2) / together
