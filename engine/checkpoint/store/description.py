"""Description of a packed store: `store.json`, and the layout of a record that follows from it.

A record is one contiguous, page-aligned run of bytes with all projections of one expert. Its prefix is the expert at the
lowest level (2 bits, say); the whole record holds the highest level as well. A level is read as its codes and scales alone:

    [scales, lowest level] [biases of the linear layers] [codes: upper bits] | [scales, next level] [codes: the rest]
    `-------------------- lowest level: the prefix ------------------------'
                           `--- highest of two levels: a suffix as long as a source of its width ---'

Each level has twice the bits of the one before, and its codes are joined from two streams (`bitplanes`). The folder of a
store also has the resident tensors, config and tokenizer. The records of a layer are one tensor `BLOCK.experts.records`
(uint8 [experts, bytes]) of an ordinary safetensors file, beside `errors` (float64 [experts, projections, levels]: squared
error of the weights relative to their squares) and `checksums` (uint32 [experts, sections + 1], CRC-32; the last one covers
the expert's errors). The file's header holds the digest of the store's description.

Format 3 is format 2 with one more key: `"records": BLOCK` in a layer's entry. Such a layer has no file. Its experts have the
records of that block's layer, which has the same experts and projections and records of its own. A store in which no layer
shares its records has format 2.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, first_line
from engine.system.strict_json import from_json, to_json

from ..dtypes import FLOATS, ITEM_BYTES
from ..experts import AFFINE_GROUPS

FORMAT, SHARED_FORMAT = 2, 3
NAME = "store.json"
PAGE = 4096
LEVELS = ((2, 4), (3, 6), (4, 8), (2, 4, 8))  # each width is twice the one before, and MLX computes with all of them
DIGITS = 16  # of a digest
ANY_DIGEST = "0" * DIGITS  # stands for a digest where only its length matters


@dataclass(frozen=True)
class Projection:
    """One projection of a packed layer."""

    name: str
    rows: int
    columns: int
    group_size: int
    dtype: str  # of the scales
    bias: str | None  # type of the linear layer's own bias, if it has one
    symmetric: bool  # groups have no stored biases: a zero weight has the same code everywhere
    exact: bool  # the highest level reproduces the source's weights exactly


@dataclass(frozen=True)
class Section:
    """One tensor of a record. `tensor` is scales, biases, codes or bias; `level` is the number of its level."""

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
    """One layer of a store: its file and the layout of its records."""

    block: str
    file: str
    experts: int
    projections: tuple[Projection, ...]
    levels: tuple[int, ...]
    records_of: str | None = None  # block of the layer whose records and file these are; None: the layer has its own

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The sections of a record in their order: tensors that MLX computes with, and streams of codes."""
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
        """Bytes of a record without the padding of its last page."""
        return self.sections[-1].offset + self.sections[-1].nbytes

    @property
    def record_bytes(self) -> int:
        return -(-self.used_bytes // PAGE) * PAGE

    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of the tensors in the layer's file, by name."""
        base = f"{self.records_of or self.block}.experts."
        return {
            base + "records": ("U8", (self.experts, self.record_bytes)),
            base + "errors": ("F64", (self.experts, len(self.projections), len(self.levels))),
            base + "checksums": ("U32", (self.experts, len(self.sections) + 1)),
        }

    def header(self, store: str) -> bytes:
        """The beginning of the file, padded so that the data start at a page. `store` is the digest of the description."""
        entries, at = {}, 0
        for name, (dtype, shape) in self.tensors.items():
            end = at + math.prod(shape) * ITEM_BYTES[dtype]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
        described = to_json({"__metadata__": {"format": "headrace records", "store": store}, **entries}).encode()
        length = -(-(8 + len(described)) // PAGE) * PAGE - 8
        return length.to_bytes(8, "little") + described.ljust(length)

    @property
    def file_bytes(self) -> int:
        data = sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in self.tensors.values())
        return len(self.header(ANY_DIGEST)) + data


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of experts in the source checkpoint. If each expert has its own, `experts` is their number, and `*` stands
    for the expert's number in `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    experts: int = 0


@dataclass(frozen=True)
class Description:
    """The content of `store.json`."""

    levels: tuple[int, ...]
    source: str  # fingerprint of the source checkpoint
    source_tensors: tuple[SourceTensor, ...]  # mlx-lm decides by their names how it loads the resident tensors
    layers: tuple[Layer, ...]

    @cached_property
    def content(self) -> dict[str, Any]:
        layers = [
            {"block": layer.block, "file": layer.file, "experts": layer.experts,
             "projections": [asdict(p) for p in layer.projections],
             **({} if layer.records_of is None else {"records": layer.records_of})}
            for layer in self.layers
        ]  # fmt: skip
        source_tensors = [[t.name, t.dtype, list(t.shape), t.experts] for t in self.source_tensors]
        return {
            "format": FORMAT if len(self.own) == len(self.layers) else SHARED_FORMAT, "levels": list(self.levels),
            "source": self.source, "layers": layers, "source_tensors": source_tensors,
        }  # fmt: skip

    @property
    def own(self) -> tuple[Layer, ...]:
        """The layers with records of their own: one for each file."""
        return tuple(layer for layer in self.layers if layer.records_of is None)

    @property
    def replaced(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, type and shape of every tensor of the source checkpoint that the store replaces."""
        for t in self.source_tensors:
            for name in [t.name.replace("*", str(n)) for n in range(t.experts)] or [t.name]:
                yield name, t.dtype, t.shape

    @cached_property
    def digest(self) -> str:
        """Digest that identifies this store."""
        return _digest(self.content)

    def as_json(self) -> str:
        return to_json({**self.content, "digest": self.digest}, indent=1) + "\n"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


def read_description(path: Path) -> Description | None:
    """The description in the folder `path`; None if the folder is not a store. Raises `CheckpointError` for another version
    of the format and for a damaged file."""
    file = path / NAME
    try:
        content = from_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{file} is damaged ({first_line(e)}); copy it again, or pack the model again") from e
    version, digest = (content.get(key) if isinstance(content, dict) else None for key in ("format", "digest"))
    if type(version) is int and version not in (FORMAT, SHARED_FORMAT):
        raise CheckpointError(
            f"{file} has format {version}, but this version reads formats {FORMAT} and {SHARED_FORMAT}; pack the model again"
        )
    if version is None or digest != _digest({key: content[key] for key in content if key != "digest"}):
        raise CheckpointError(
            f"{file} is damaged (its digest is not {digest!s:.{DIGITS}}); copy it again, or pack the model again"
        )
    try:
        return _description(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise CheckpointError(f"{file} does not describe a store ({first_line(e)}); pack the model again") from e


def _description(content: dict[str, Any]) -> Description:
    """The description in the content of a file. Raises a built-in error or `CheckpointError` for impossible content."""
    levels = tuple(content["levels"])
    check_levels(levels)
    layers = tuple(
        Layer(
            found["block"], found["file"], found["experts"], tuple(Projection(**p) for p in found["projections"]), levels,
            found.get("records"),
        )
        for found in content["layers"]
    )  # fmt: skip
    own = {layer.block: layer for layer in layers if layer.records_of is None}
    shared = [layer for layer in layers if layer.records_of is not None]
    if shared and content["format"] == FORMAT:
        raise ValueError(f"{shared[0].block!s:.80} shares records, which format {FORMAT} does not have")
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
        if layer.records_of is not None and (
            (owner := own.get(layer.records_of)) is None
            or (owner.file, owner.experts, owner.projections) != (layer.file, layer.experts, layer.projections)
        ):
            raise ValueError(f"{layer.block!s:.80} shares the records of {layer.records_of!s:.80}, which do not fit")
    tensors = tuple(
        SourceTensor(str(name), str(dtype), tuple(shape), experts)
        for name, dtype, shape, experts in content["source_tensors"]
    )
    return Description(levels, str(content["source"]), tensors, layers)


def layer_files(path: Path, description: Description) -> tuple[Path, ...]:
    """The files of records, each once, in the order of the layers. Raises `CheckpointError` if one is missing."""
    files = tuple(path / layer.file for layer in description.own)
    missing = [file for file in files if not file.exists()]
    if missing:
        raise CheckpointError(
            f"store {path} lacks {len(missing)} of {len(files)} layers ({missing[0].name} is the first): packing is not "
            "complete; give the same pack command again to resume it"
        )
    return files


def levels_for(widest: int) -> tuple[int, ...]:
    """The levels that keep a source of `widest` bits exactly; 2 and 4 for a source that is not quantized."""
    return next((levels for levels in ((2, 4), (3, 6), (2, 4, 8)) if widest <= levels[-1]), (2, 4))


def check_levels(levels: tuple[int, ...]) -> None:
    """Raises `CheckpointError` for levels that a store cannot have."""
    if levels not in LEVELS:
        known = " or ".join(",".join(map(str, known)) for known in LEVELS)
        nested = all(b == 2 * a for a, b in itertools.pairwise(levels)) and len(levels) > 1
        why = "are not widths that MLX computes with" if nested else "do not nest: each must be twice the one before"
        raise CheckpointError(f"--levels {','.join(map(str, levels))} {why}; give one of {known}")
