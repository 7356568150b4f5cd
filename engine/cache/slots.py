"""Slots: memory for the cached experts of one pool, owned by MLX and filled by the reader.

A pool has one MLX array `[slots, ...]` per tensor, and mlx-lm's own switch module computes on it with slot numbers instead
of expert numbers. `memoryview(array)` is writable and MLX sees the writes, so `preadv` reads from the disk straight into a
slot. Tensors whose bytes change on the way pass through a staging buffer and are converted on arrival: bfloat16 weights on
the CPU, where MLX computes in float32; codes stored in two streams; and weights that are quantized again.

A slot must not be overwritten while a queued graph may still read it, or MLX computes wrong numbers silently. The caller
ensures this by evaluating a layer's output before it requests other experts for the same layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from engine.checkpoint.experts import ExpertLayer, ExpertTensor
from engine.disk.direct import direct_unit
from engine.disk.load import Piece
from engine.disk.reader import Reader

from .convert import derive_biases, join_streams, requantized, to_float32, to_mlx
from .slot_layout import Requantize, goes_straight, slot_tensors

PAGE = direct_unit()
STAGING_ALIGNMENT = 64


class SlotArray:
    """One tensor of a pool: the MLX array `[slots, *shape]` and a writable numpy view of its memory.

    The first slot's address modulo `PAGE` is `phase`, as far as the type's size allows. On a GPU it is 0, because kernels
    may assume whole cache lines. If `phase` is that of the tensor's offset in the file, direct reads need no copy, and
    copies from the page cache run at 12.5 GB/s. They run at 3 to 6 GB/s if the address is 8 to 24 bytes further (Zen 4),
    which is where MLX's allocator puts arrays on the CPU. The array is a slice of a larger one.
    """

    def __init__(self, slots: int, shape: tuple[int, ...], dtype: mx.Dtype, phase: int = 0) -> None:
        stored = mx.uint16 if dtype == mx.bfloat16 else dtype
        count = slots * math.prod(shape)
        memory = mx.zeros(count + PAGE // stored.size, stored)
        mx.eval(memory)
        address = host_view(memory).ctypes.data
        start = ((phase if mx.default_device() == mx.Device(mx.cpu) else 0) - address) % PAGE // stored.size
        raw = memory[start : start + count].reshape(slots, *shape)
        self.array = raw.view(dtype)
        mx.eval(raw, self.array)
        self.memory = host_view(raw)
        assert self.memory.ctypes.data == address + start * stored.size, "MLX copied the slice"

    @property
    def memory_bytes(self) -> memoryview:
        """All slots as bytes, one after the other."""
        return self.memory.reshape(-1).view(np.uint8).data


def host_view(array: mx.array) -> np.ndarray:
    """A writable numpy view of an evaluated MLX array, without a copy."""
    return np.asarray(memoryview(array))  # type: ignore[arg-type]  # the stubs of mx.array lack the buffer protocol


class Straight(NamedTuple):
    """A tensor that is read straight into its slot."""

    file: list[int]  # by expert
    offset: list[int]  # by expert
    nbytes: int
    memory: memoryview  # all slots
    section: int | None


class Staged(NamedTuple):
    """A tensor that is read into staging memory, with the offsets of its parts there."""

    tensor: ExpertTensor
    places: tuple[tuple[ExpertTensor, int], ...]


class Arrival(NamedTuple):
    """What loading one expert into one slot takes."""

    pieces: list[Piece]
    sections: list[tuple[int | None, memoryview]]  # bytes to verify, by section of the record
    conversions: list[Callable[[], None]]  # to run when all pieces are there
    staging: bytearray


class Slots:
    """The slot arrays of one pool: an array per tensor, and the way of an expert's bytes into a slot.

    `inner` is mlx-lm's switch module whose projections already have the pool's width; the slot arrays replace its
    parameters. `requantize` gives the new width of projections that do not keep the checkpoint's.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        members: np.ndarray,
        slots: int,
        inner: Any,
        requantize: dict[str, Requantize],
        compute: mx.Dtype | None,
    ) -> None:
        self._layer = layer
        self._requantize = requantize
        self._compute = compute
        straight = {t.name: t for t in layer.tensors if goes_straight(t, requantize, compute)}
        self._arrays: dict[str, SlotArray] = {}
        for name, shape, dtype in slot_tensors(layer, requantize, compute):
            projection, parameter = name.split(".")
            phase = int(straight[name].offset[members[0]]) % PAGE if len(members) and name in straight else 0
            self._arrays[name] = SlotArray(slots, shape, dtype, phase)
            inner[projection][parameter] = self._arrays[name].array
        self._straight = [
            Straight(t.file.tolist(), t.offset.tolist(), t.nbytes, self._arrays[t.name].memory_bytes, t.section)
            for t in straight.values()
        ]
        self._staged: list[Staged] = []
        self._staging_bytes = 0
        for tensor in layer.tensors:
            if tensor.name in straight:
                continue
            places = []
            for part in tensor.parts or (tensor,):
                places.append((part, self._staging_bytes))
                self._staging_bytes += -(-part.nbytes // STAGING_ALIGNMENT) * STAGING_ALIGNMENT
            self._staged.append(Staged(tensor, tuple(places)))

    def arrival(self, expert: int, slot: int, reader: Reader) -> Arrival:
        """The reads that bring `expert` into `slot`, and the conversions after them."""
        staging = bytearray(self._staging_bytes)
        out = Arrival([], [], [], staging)
        for file, offset, nbytes, memory, section in self._straight:
            into = memory[slot * nbytes : (slot + 1) * nbytes]
            out.pieces.append(Piece(file[expert], offset[expert], into))
            out.sections.append((section, into))
        for tensor, places in self._staged:
            views = [memoryview(staging)[at : at + part.nbytes] for part, at in places]
            for (part, _), into in zip(places, views, strict=True):
                out.pieces.append(Piece(int(part.file[expert]), int(part.offset[expert]), into))
                out.sections.append((part.section, into))
            target = self._arrays[tensor.name].memory[slot]
            if tensor.parts:
                join = functools.partial(join_streams, views, tensor)
                out.conversions.append(functools.partial(reader.make, target, join))
            elif tensor.projection not in self._requantize or tensor.tensor == "bias":
                widen = functools.partial(to_float32, views[0], tensor)
                out.conversions.append(functools.partial(reader.make, target, widen))
        if self._layer.zeros:
            out.conversions.append(functools.partial(self._derive_biases, slot))
        return out

    def quantize_into(self, slot: int, staging: bytearray) -> None:
        """Quantize the projections with a new width from staging memory into `slot`; on the main thread, with MLX."""
        parts: dict[str, dict[str, mx.array]] = {}
        for tensor, ((_, at), *_) in self._staged:
            if tensor.projection in self._requantize and tensor.tensor != "bias":
                array = to_mlx(memoryview(staging)[at : at + tensor.nbytes], tensor, self._compute)
                parts.setdefault(tensor.projection, {})[tensor.tensor] = array
        for projection, tensors in parts.items():
            codes = requantized(tensors, self._requantize[projection])
            mx.eval(codes)
            for name, array in zip(("weight", "scales", "biases"), codes, strict=True):
                memory = self._arrays[f"{projection}.{name}"].memory[slot]
                memory[...] = host_view(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)

    def _derive_biases(self, slot: int) -> None:
        for projection, zero in self._layer.zeros.items():
            if projection not in self._requantize:
                scales = self._arrays[f"{projection}.scales"].memory[slot]
                derive_biases(scales, zero, self._arrays[f"{projection}.biases"].memory[slot])
