"""Store: a model whose routed experts are packed as progressive records, each of them several precisions in one.

A record is one contiguous run of bytes in a page-aligned place and holds all projections of an expert. Its prefix is the
expert at the lowest level (2 bits, say), the whole is the highest level. A level is read by its codes and scales alone:

    [scales, lowest level] [biases of the linear layers] [codes: upper bits] | [scales, next level] [codes: the rest]
    `-------------------- lowest level: the prefix ------------------------'
                           `--- highest of two levels: a suffix of as many bytes as a source of its width has ------'

Each level has twice the bits of the one before, and its codes are put together from two streams (`engine.nesting`). In a
folder with the resident tensors, config and tokenizer, `store.json` says what lies where; the records of a layer are one
tensor `BLOCK.experts.records` (uint8 [experts, bytes]) of an ordinary safetensors file, beside `checksums` (uint32
[experts, sections], CRC-32) and `errors` (float64 [experts, projections, levels]: squared error of the weights relative to
their squares).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, first_line
from .experts import INT4_BITS, INT4_ZERO, ExpertLayer, ExpertTensor
from .headers import ITEM_BYTES, Entry
from .nesting import column_order

FORMAT = 1
NAME = "store.json"
PAGE = 4096
CHAINS = ((2, 4), (3, 6), (4, 8), (2, 4, 8))


@dataclass(frozen=True)
class Projection:
    """One projection of a packed layer."""

    name: str
    rows: int
    columns: int
    group_size: int
    dtype: str  # of the scales
    bias: str | None  # type of the linear layer's own bias, if it has one
    symmetric: bool  # biases of the groups are not stored: a zero weight has the same code everywhere
    exact: bool  # the highest level has the source's very weights


@dataclass(frozen=True)
class Section:
    """One tensor of a record: `tensor` is scales, biases, codes or bias, of the level number `level`."""

    projection: str
    tensor: str
    level: int
    dtype: str
    shape: tuple[int, ...]
    offset: int  # in the record

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Layer:
    """One layer of a store: its file, and what its records hold."""

    block: str
    file: str
    experts: int
    projections: tuple[Projection, ...]
    levels: tuple[int, ...]

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The parts of a record in their order; each as a tensor that MLX computes with, or a stream of codes."""
        found: list[Section] = []

        def add(projection: str, tensor: str, level: int, dtype: str, shape: tuple[int, ...]) -> None:
            at = found[-1].offset + found[-1].nbytes if found else 0
            found.append(Section(projection, tensor, level, dtype, shape, at))

        for level, bits in enumerate(self.levels):
            new_bits = bits - (self.levels[level - 1] if level else 0)
            for p in self.projections:
                for tensor in ("scales",) if p.symmetric else ("scales", "biases"):
                    add(p.name, tensor, level, p.dtype, (p.rows, p.columns // p.group_size))
            for p in self.projections:
                if p.bias is not None and level == 0:
                    add(p.name, "bias", 0, p.bias, (p.rows,))
            for p in self.projections:
                add(p.name, "codes", level, "U32", (p.rows, p.columns * new_bits // 32))
        return tuple(found)

    @property
    def used_bytes(self) -> int:
        """Bytes of a record without what fills its last page."""
        return self.sections[-1].offset + self.sections[-1].nbytes

    @property
    def record_bytes(self) -> int:
        return -(-self.used_bytes // PAGE) * PAGE

    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of the layer's tensors in its file."""
        base = f"{self.block}.experts."
        return {
            base + "records": ("U8", (self.experts, self.record_bytes)),
            base + "errors": ("F64", (self.experts, len(self.projections), len(self.levels))),
            base + "checksums": ("U32", (self.experts, len(self.sections))),
        }

    @cached_property
    def header(self) -> bytes:
        """What the file begins with, filled up so that the data begin with a page."""
        entries, at = {}, 0
        for name, (dtype, shape) in self.tensors.items():
            end = at + math.prod(shape) * ITEM_BYTES[dtype]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
        described = json.dumps({"__metadata__": {"format": "headrace records"}, **entries}).encode()
        length = -(-(8 + len(described)) // PAGE) * PAGE - 8
        return length.to_bytes(8, "little") + described.ljust(length)

    @property
    def file_bytes(self) -> int:
        return len(self.header) + sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in self.tensors.values())


@dataclass(frozen=True)
class Description:
    """What `store.json` says."""

    levels: tuple[int, ...]
    source: str  # fingerprint of the checkpoint that was packed
    layers: tuple[Layer, ...]

    def as_json(self) -> str:
        layers = [
            {"block": layer.block, "file": layer.file, "experts": layer.experts,
             "projections": [asdict(p) for p in layer.projections]}
            for layer in self.layers
        ]  # fmt: skip
        content = {"format": FORMAT, "levels": list(self.levels), "source": self.source, "layers": layers}
        return json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_description(path: Path) -> Description | None:
    """The description in the folder `path`, None if it is no store. Raises `CheckpointError` for another version of the
    format and for a damaged file."""
    file = path / NAME
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version, digest = content["format"], content.pop("digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{file} is damaged ({first_line(e)}); copy it again, or pack the model again") from e
    if version != FORMAT:
        raise CheckpointError(f"{file} is of format {version}, this version reads {FORMAT}; pack the model again")
    if digest != _digest(content):
        raise CheckpointError(f"{file} is damaged (its digest is not {digest}); copy it again, or pack the model again")
    levels = tuple(content["levels"])
    layers = tuple(
        Layer(found["block"], found["file"], found["experts"], tuple(Projection(**p) for p in found["projections"]), levels)
        for found in content["layers"]
    )
    return Description(levels, content["source"], layers)


def layer_files(path: Path, description: Description) -> tuple[Path, ...]:
    """The files with the records, in the order of the layers. Raises `CheckpointError` if packing has not finished them."""
    files = tuple(path / layer.file for layer in description.layers)
    missing = [file for file in files if not file.exists()]
    if missing:
        raise CheckpointError(
            f"store {path} lacks {len(missing)} of {len(files)} layers ({missing[0].name} is the first): packing has not "
            "finished; give the same pack command again, which goes on where it stopped"
        )
    return files


def open_layers(description: Description, tensors: dict[str, Entry], files: tuple[Path, ...]) -> tuple[ExpertLayer, ...]:
    """The layers of experts at the highest level, from the headers of the `files`, which `tensors` numbers. Raises
    `CheckpointError` if they do not have what the description says."""
    out = []
    for layer in description.layers:
        for name, (dtype, shape) in layer.tensors.items():
            entry = tensors.get(name)
            if entry is None or (entry.dtype, entry.shape) != (dtype, shape) or files[entry.file].name != layer.file:
                has = "nothing" if entry is None else f"{entry.dtype} {list(entry.shape)}"
                raise CheckpointError(
                    f"{files[0].parent / layer.file} has {has} for {name}, not {dtype} {list(shape)}: it is another "
                    "store's; copy it again, or pack the model again"
                )
        records, errors, checksums = (tensors[name] for name in layer.tensors)
        found = Records(layer, files[records.file], records, errors, checksums)
        out.append(found.layer(dict.fromkeys((p.name for p in layer.projections), description.levels[-1])))
    return tuple(out)


class Records:
    """The records of one layer, and the layer of experts that each choice of levels makes of them."""

    def __init__(self, layer: Layer, file: Path, records: Entry, errors: Entry, checksums: Entry) -> None:
        self.levels = layer.levels
        self._layer = layer
        self.file = file
        self._records = records
        self._checksums = checksums
        self._errors = errors

    @cached_property
    def checksums(self) -> np.ndarray:
        """uint32 [experts, sections]"""
        return self._load(self._checksums, np.uint32)

    @cached_property
    def errors(self) -> np.ndarray:
        """float64 [experts, projections, levels]: squared error relative to the weights' squares."""
        return self._load(self._errors, np.float64)

    def damage(self, fd: int, expert: int) -> list[str]:
        """Read a whole record and compare its checksums: a line for each section that is not what was packed."""
        at = self._records.offset + expert * self._layer.record_bytes
        record = os.pread(fd, self._layer.used_bytes, at)
        return [
            f"{self.file.name}: {self._layer.block} expert {expert}, {self.section_name(number)} is damaged"
            for number, s in enumerate(self._layer.sections)
            if zlib.crc32(memoryview(record)[s.offset : s.offset + s.nbytes]) != self.checksums[expert, number]
        ]

    def section_name(self, number: int) -> str:
        """What a section is, for people: `gate_proj scales of 2 bits`."""
        section = self._layer.sections[number]
        return f"{section.projection} {section.tensor} of {self.levels[section.level]} bits"

    def layer(self, widths: Mapping[str, int]) -> ExpertLayer:
        """The experts with these bits by projection."""
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

    def _tensor(self, number: int, section: Section) -> ExpertTensor:
        experts = np.arange(self._layer.experts, dtype=np.int64)
        offset = self._records.offset + experts * self._layer.record_bytes + section.offset
        file = np.full(len(experts), self._records.file, np.int32)
        return ExpertTensor(section.projection, section.tensor, section.dtype, section.shape, file, offset, section=number)

    def _load(self, entry: Entry, dtype: Any) -> np.ndarray:
        return np.fromfile(self.file, dtype, math.prod(entry.shape), offset=entry.offset).reshape(entry.shape)


def chain_for(widest: int) -> tuple[int, ...]:
    """The levels for a source of which `widest` bits are to be kept exactly; 2 and 4 for one that is not quantized."""
    return next((chain for chain in ((2, 4), (3, 6), (2, 4, 8)) if widest <= chain[-1]), (2, 4))


def zero_code(bits: int) -> float:
    """The code of a zero weight in INT4 without zero points, brought to another width; below 4 bits the middle of the codes
    that fall together stands for all of them."""
    together = 2.0 ** (INT4_BITS - bits)
    return (INT4_ZERO - max(0.0, together - 1) / 2) / together


def check_chain(levels: tuple[int, ...]) -> None:
    """Raises `CheckpointError` for levels that do not nest."""
    if levels not in CHAINS:
        known = ", ".join(",".join(map(str, chain)) for chain in CHAINS)
        nested = all(b == 2 * a for a, b in itertools.pairwise(levels)) and len(levels) > 1
        why = "are not widths that MLX computes with" if nested else "do not nest: each must be twice the one before"
        raise CheckpointError(f"--levels {','.join(map(str, levels))} {why}; give one of {known}")
