"""Store: a model whose routed experts are packed as progressive records, each of them several precisions in one.

A record is one contiguous run of bytes in a page-aligned place and holds all projections of an expert. Its prefix is the
expert at the lowest level (2 bits, say), the whole is the highest level. A level is read by its codes and scales alone:

    [scales, lowest level] [biases of the linear layers] [codes: upper bits] | [scales, next level] [codes: the rest]
    `-------------------- lowest level: the prefix ------------------------'
                           `--- highest of two levels: a suffix of as many bytes as a source of its width has ------'

Each level has twice the bits of the one before, and its codes are put together from two streams
(`engine.checkpoint.bitplanes`). In a
folder with the resident tensors, config and tokenizer, `store.json` says what lies where; the records of a layer are one
tensor `BLOCK.experts.records` (uint8 [experts, bytes]) of an ordinary safetensors file, beside `errors` (float64 [experts,
projections, levels]: squared error of the weights relative to their squares) and `checksums` (uint32 [experts, sections
+ 1], CRC-32; the last is that of the expert's errors). The file's header names the store that it belongs to.
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

from engine.errors import CheckpointError, first_line

from .bitplanes import column_order
from .experts import AFFINE_GROUPS, FLOATS, INT4_BITS, INT4_ZERO, ExpertLayer, ExpertTensor
from .headers import ITEM_BYTES, Entry

FORMAT = 2
NAME = "store.json"
PAGE = 4096
CHAINS = ((2, 4), (3, 6), (4, 8), (2, 4, 8))
DIGITS = 16  # of a digest
NOBODY = "0" * DIGITS


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
            base + "checksums": ("U32", (self.experts, len(self.sections) + 1)),
        }

    def header(self, store: str) -> bytes:
        """What the file begins with, filled up so that the data begin with a page; `store` is the description's digest."""
        entries, at = {}, 0
        for name, (dtype, shape) in self.tensors.items():
            end = at + math.prod(shape) * ITEM_BYTES[dtype]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
        described = json.dumps({"__metadata__": {"format": "headrace records", "store": store}, **entries}).encode()
        length = -(-(8 + len(described)) // PAGE) * PAGE - 8
        return length.to_bytes(8, "little") + described.ljust(length)

    def opened(self) -> ExpertLayer:
        """Its experts at the highest level as tensors, without a file: shapes and types are right, places are not."""
        records = Records(self, Path(self.file), *(Entry(dtype, shape, 0, 0) for dtype, shape in self.tensors.values()))
        return records.layer(dict.fromkeys((p.name for p in self.projections), self.levels[-1]))

    @property
    def file_bytes(self) -> int:
        return len(self.header(NOBODY)) + sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in self.tensors.values())


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of experts as the checkpoint had it. Where each expert has one of its own, `experts` is how many there are,
    and `*` stands in the name for the expert's number."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    experts: int = 0


@dataclass(frozen=True)
class Description:
    """What `store.json` says."""

    levels: tuple[int, ...]
    source: str  # fingerprint of the checkpoint that was packed
    source_tensors: tuple[SourceTensor, ...]  # mlx-lm looks at their names when it opens what is left
    layers: tuple[Layer, ...]

    @cached_property
    def content(self) -> dict[str, Any]:
        layers = [
            {"block": layer.block, "file": layer.file, "experts": layer.experts,
             "projections": [asdict(p) for p in layer.projections]}
            for layer in self.layers
        ]  # fmt: skip
        source_tensors = [[t.name, t.dtype, list(t.shape), t.experts] for t in self.source_tensors]
        return {
            "format": FORMAT, "levels": list(self.levels), "source": self.source, "layers": layers,
            "source_tensors": source_tensors,
        }  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """What the store is told from every other by."""
        return _digest(self.content)

    def as_json(self) -> str:
        return json.dumps({**self.content, "digest": self.digest}, indent=1) + "\n"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


def read_description(path: Path) -> Description | None:
    """The description in the folder `path`, None if it is no store. Raises `CheckpointError` for another version of the
    format and for a damaged file."""
    file = path / NAME
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{file} is damaged ({first_line(e)}); copy it again, or pack the model again") from e
    version, digest = (content.get(key) if isinstance(content, dict) else None for key in ("format", "digest"))
    if type(version) is int and version != FORMAT:
        raise CheckpointError(f"{file} is of format {version}, this version reads {FORMAT}; pack the model again")
    if version is None or digest != _digest({key: content[key] for key in content if key != "digest"}):
        raise CheckpointError(
            f"{file} is damaged (its digest is not {digest!s:.{DIGITS}}); copy it again, or pack the model again"
        )
    try:
        return _described(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise CheckpointError(f"{file} describes no store ({first_line(e)}); pack the model again") from e


def _described(content: dict[str, Any]) -> Description:
    """The description in the content of a file; an error of Python's if it makes no sense."""
    levels = tuple(content["levels"])
    check_chain(levels)
    layers = tuple(
        Layer(found["block"], found["file"], found["experts"], tuple(Projection(**p) for p in found["projections"]), levels)
        for found in content["layers"]
    )
    for layer in layers:
        names = {p.name for p in layer.projections}
        counts = [layer.experts, *(n for p in layer.projections for n in (p.rows, p.columns))]
        if not (
            names in ({"gate_proj", "up_proj", "down_proj"}, {"fc1", "fc2"}) and len(layer.projections) == len(names)
            and all(type(n) is int and 0 < n < 1 << 31 for n in counts) and Path(layer.file).name == layer.file
            and all(
                p.group_size in AFFINE_GROUPS and p.columns % p.group_size == 0 and p.dtype in FLOATS
                and p.bias in (None, *FLOATS) and {type(p.symmetric), type(p.exact)} == {bool}
                for p in layer.projections
            )
        ):  # fmt: skip
            raise ValueError(f"{layer.block!s:.80} has impossible projections")
    tensors = tuple(
        SourceTensor(str(name), str(dtype), tuple(shape), experts)
        for name, dtype, shape, experts in content["source_tensors"]
    )
    return Description(levels, str(content["source"]), tensors, layers)


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
    `CheckpointError` if a layer's file is not the one that was packed with this description."""
    out = []
    named = {file.name: file for file in files}
    for layer in description.layers:
        file, header = named[layer.file], layer.header(description.digest)
        with open(file, "rb") as f:
            if f.read(len(header)) != header:
                raise CheckpointError(
                    f"{file} is not of this store: its header is another one; copy it again, or pack the model again"
                )
        records, errors, checksums = (tensors[name] for name in layer.tensors)
        found = Records(layer, file, records, errors, checksums)
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
        """uint32 [experts, sections + 1]; the last is that of the errors."""
        return self._load(self._checksums, np.uint32)

    @cached_property
    def errors(self) -> np.ndarray:
        """float64 [experts, projections, levels]: squared error relative to the weights' squares."""
        return self._load(self._errors, np.float64)

    def damage(self, fd: int, expert: int) -> list[str]:
        """Read a whole record and compare its checksums: a line for each part that is not what was packed."""
        at = self._records.offset + expert * self._layer.record_bytes
        record = memoryview(os.pread(fd, self._layer.record_bytes, at))
        parts = [record[s.offset : s.offset + s.nbytes] for s in self._layer.sections]
        sums = [*map(zlib.crc32, parts), zlib.crc32(self.errors[expert].tobytes())]
        names = [*map(self.section_name, range(len(parts))), "the figures of its errors"]
        bad = [name for name, found, packed in zip(names, sums, self.checksums[expert], strict=True) if found != packed]
        if any(record[self._layer.used_bytes :]):
            bad.append("what fills its last page")
        return [f"{self.file.name}: {self._layer.block} expert {expert}: {name} is damaged" for name in bad]

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
        known = " or ".join(",".join(map(str, chain)) for chain in CHAINS)
        nested = all(b == 2 * a for a, b in itertools.pairwise(levels)) and len(levels) > 1
        why = "are not widths that MLX computes with" if nested else "do not nest: each must be twice the one before"
        raise CheckpointError(f"--levels {','.join(map(str, levels))} {why}; give one of {known}")
