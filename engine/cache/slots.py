"""Slots: memory for the cached experts of one pool, owned by MLX and filled by the reader.

A pool has one MLX array `[slots, ...]` per tensor, and mlx-lm's own switch module computes on it with slot numbers instead
of expert numbers. `memoryview(array)` is writable and MLX sees the writes, so the reader's threads read from the disk
straight into a slot. Tensors whose bytes change on the way pass through a staging buffer and are converted on arrival, in
the same threads: bfloat16 weights on the CPU, where MLX computes in float32, and codes stored in several streams. Weights
that are quantized again are converted by MLX, on the main thread.

A slot must not be overwritten while a queued graph may still read it, or MLX computes wrong numbers silently. The caller
ensures this by evaluating a layer's output before it requests other experts for the same layer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from engine.checkpoint.experts import ExpertLayer, ExpertTensor
from engine.disk.direct import direct_unit

from .convert import requantized, to_mlx
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


class Staged(NamedTuple):
    """A tensor that is read into staging memory, with the offsets of its parts there."""

    tensor: ExpertTensor
    places: tuple[tuple[ExpertTensor, int], ...]


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
        self._straight = list(straight.values())
        self._staged: list[Staged] = []
        self.staging_bytes = 0
        for tensor in layer.tensors:
            if tensor.name in straight:
                continue
            places = []
            for part in tensor.parts or (tensor,):
                places.append((part, self.staging_bytes))
                self.staging_bytes += -(-part.nbytes // STAGING_ALIGNMENT) * STAGING_ALIGNMENT
            self._staged.append(Staged(tensor, tuple(places)))

    @property
    def has_scales(self) -> bool:
        """Whether the slots hold codes with scales, not plain weights."""
        return any(name.endswith(".scales") for name in self._arrays)

    def release(self, inner: Any) -> None:
        """Drop the slot arrays, and their places in the switch module `inner`."""
        for name in self._arrays:
            projection, parameter = name.split(".")
            inner[projection][parameter] = mx.zeros(0)
        self._arrays.clear()

    def sources(self) -> list[tuple[Any, ...]]:
        """What is read of an expert, as `engine.native` takes it: file and offset by expert, bytes, the memory of all slots
        or None, the offset in staging memory, the section of a packed record or -1, and the number of the codes in `made`
        that it is a stream of, or -1."""
        out = [_source(t, self._arrays[t.name].memory_bytes, 0) for t in self._straight]
        made = {tensor.name: number for number, (tensor, _) in enumerate(self._converted)}
        for tensor, places in self._staged:
            joined = made.get(tensor.name, -1) if tensor.parts else -1
            out += [_source(part, None, at, joined) for part, at in places]
        return out

    @property
    def _converted(self) -> list[Staged]:
        """The tensors that the reader's threads convert; the others are quantized by MLX, on the main thread."""
        return [s for s in self._staged if s.tensor.projection not in self._requantize or s.tensor.tensor == "bias"]

    def made(self) -> list[tuple[Any, ...]]:
        """What is made of the bytes in staging memory when all have arrived, as `engine.native` takes it: how, offsets and
        sizes of the parts, bits of joined codes, the code of a zero weight, and the memory of scales and target."""
        out: list[tuple[Any, ...]] = []
        for tensor, places in self._converted:
            how = "join" if tensor.parts else "widen_bf16" if tensor.dtype == "BF16" else "widen_f16"
            sizes = [part.nbytes for part, _ in places]
            out.append(
                (how, [at for _, at in places], sizes, tensor.bits, 0.0, None, self._arrays[tensor.name].memory_bytes)
            )
        for projection, zero in self._layer.zeros.items():
            if projection not in self._requantize:
                scales, biases = (self._arrays[f"{projection}.{name}"] for name in ("scales", "biases"))
                how = {np.dtype(np.float32): "bias_f32", np.dtype(np.float16): "bias_f16"}.get(
                    scales.memory.dtype, "bias_bf16"
                )
                out.append((how, [], [], 0, zero, scales.memory_bytes, biases.memory_bytes))
        return out

    def quantize_into(self, slot: int, staging: memoryview) -> None:
        """Quantize the projections with a new width from staging memory into `slot`; on the main thread, with MLX."""
        parts: dict[str, dict[str, mx.array]] = {}
        for tensor, ((_, at), *_) in self._staged:
            if tensor.projection in self._requantize and tensor.tensor != "bias":
                array = to_mlx(staging[at : at + tensor.nbytes], tensor, self._compute)
                parts.setdefault(tensor.projection, {})[tensor.tensor] = array
        for projection, tensors in parts.items():
            codes = requantized(tensors, self._requantize[projection])
            mx.eval(codes)
            for name, array in zip(("weight", "scales", "biases"), codes, strict=True):
                memory = self._arrays[f"{projection}.{name}"].memory[slot]
                memory[...] = host_view(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _source(tensor: ExpertTensor, slots: memoryview | None, staging: int, joined: int = -1) -> tuple[Any, ...]:
    file, offset = np.ascontiguousarray(tensor.file, np.int32), np.ascontiguousarray(tensor.offset, np.int64)
    return file, offset, tensor.nbytes, slots, staging, -1 if tensor.section is None else tensor.section, joined
