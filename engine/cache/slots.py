"""Slots: the cached experts of one layer at one width, in memory that MLX owns and that we fill ourselves.

A bank has one MLX array a tensor, `[slots, ...]`, and mlx-lm's own switch module computing on it with slot numbers in the
place of expert numbers. `memoryview(array)` is writable and MLX sees the writes, so `preadv` can go straight from the disk
into a slot. What cannot go straight (bfloat16 weights on the CPU, where MLX computes in float32; a width other than the
checkpoint's) passes through a staging buffer and is converted when it arrives.

A slot must never be overwritten while a queued graph may still read it: MLX would compute wrong numbers in silence. The
caller keeps that promise by evaluating a layer's output before it asks the same layer for other experts.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from engine.checkpoint.bitplanes import join
from engine.checkpoint.checkpoint import FLOATS, ExpertLayer, ExpertTensor
from engine.disk.reader import Load, Piece, Reader
from engine.errors import ReadError
from engine.model.backend import STORED
from engine.packing.quantize import to_bytes
from engine.stats import Stats

from .eviction import SlotTable

RAW = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16, mx.uint32: np.uint32, mx.int32: np.int32,
       mx.uint8: np.uint8}  # fmt: skip
FILL_AT_ONCE = 32  # experts; each may have staging memory
PAGE = 4096
STAGING_ALIGNMENT = 64


def slot_dtype(tensor: ExpertTensor, compute: mx.Dtype | None) -> mx.Dtype:
    """The type a tensor has in its slot: floats in the compute type if one is set, all else as it is stored."""
    return compute if compute is not None and tensor.dtype in FLOATS else STORED[tensor.dtype]


class SlotArray:
    """One tensor of a bank: the MLX array `[slots, *shape]` and, per slot, a writable numpy view of its memory.

    The first slot's address modulo 4096 is `phase`, as far as the type's size allows; on a GPU, whose kernels may count on
    whole cache lines, it is 0. With the phase of the tensor's offset in the file, direct reads need no copy, and copies from
    the page cache run at 12.5 GB/s where they run at 3 to 6 if the address is 8 to 24 bytes further (Zen 4), which is where
    MLX's allocator puts arrays on the CPU. The array is a slice of a larger one.
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
    """The memory of an evaluated MLX array as numpy sees it, without a copy and writable."""
    return np.asarray(memoryview(array))  # type: ignore[arg-type]  # it has the buffer protocol, but does not say so


class Staged(NamedTuple):
    """A tensor that reaches its slot by way of staging memory: where in there its parts lie."""

    tensor: ExpertTensor
    places: tuple[tuple[ExpertTensor, int], ...]


@dataclass(frozen=True)
class Requantize:
    """How one projection's weight gets to another width when it is loaded."""

    group_size: int
    bits: int
    source: dict[str, Any] | None  # group_size, bits and mode of the checkpoint's own quantization, if it has one


class Bank:
    """The slots of `table`, for experts of one layer at one width, behind one switch module.

    `inner` is mlx-lm's switch module whose projections already have the bank's width; its parameters are replaced by the
    slot arrays. `requantize` maps a projection to its new width, where that differs from the checkpoint's. `stats` counts
    the reads for layer `number`. `verify`: no expert is computed with whose checksums are not the store's.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        table: SlotTable,
        inner: Any,
        requantize: dict[str, Requantize],
        *,
        compute: mx.Dtype | None,
        stats: Stats,
        number: int | None = None,
        verify: bool = False,
    ) -> None:
        self.layer = layer
        self.table = table
        self.inner = inner
        self.changed = True  # since the device's copy of `slot_of` was made
        self._compute = compute
        self._requantize = requantize
        self._stats = stats
        self._number = number
        self._verify = verify
        self._coming: dict[int, tuple[Load, bytearray | None]] = {}  # expert -> its load and staging memory
        self._arrays: dict[str, SlotArray] = {}
        first = table.members[:1]
        phases = {t.name: int(t.offset[first][0]) % PAGE for t in layer.tensors if len(first) and self._goes_straight(t)}
        for name, shape, dtype in slot_tensors(layer, requantize, compute):
            projection, parameter = name.split(".")
            self._arrays[name] = SlotArray(table.slots, shape, dtype, phases.get(name, 0))
            inner[projection][parameter] = self._arrays[name].array
        straight = [t for t in layer.tensors if self._goes_straight(t)]
        self._straight = [
            (t.file.tolist(), t.offset.tolist(), t.nbytes, self._arrays[t.name].memory_bytes, t.section) for t in straight
        ]
        self._staged: list[Staged] = []
        self._staging_bytes = 0
        for tensor in layer.tensors:
            if self._goes_straight(tensor):
                continue
            places = []
            for part in tensor.parts or (tensor,):
                places.append((part, self._staging_bytes))
                self._staging_bytes += -(-part.nbytes // STAGING_ALIGNMENT) * STAGING_ALIGNMENT
            self._staged.append(Staged(tensor, tuple(places)))

    @property
    def holds_all(self) -> bool:
        """There is a slot for every member."""
        return self.table.slots == len(self.table.members)

    @property
    def settled(self) -> bool:
        """No read is under way."""
        return not self._coming

    def take_in(self) -> None:
        """Settle the reads that have ended by now."""
        for expert in [e for e, (load, _) in self._coming.items() if load.ended is not None]:
            with contextlib.suppress(ReadError):  # nobody asked for it yet; who does will have it read again
                self.settle(np.array([expert]))

    def waits_for(self, experts: np.ndarray) -> bool:
        """Whether the reads of one of `experts` are under way."""
        return bool(self._coming) and not self._coming.keys().isdisjoint(experts.tolist())

    def fill(self, experts: np.ndarray, reader: Reader) -> None:
        """Load `experts` into free slots, in their order, a few at a time; before the first token."""
        for begin in range(0, len(experts), FILL_AT_ONCE):
            some = experts[begin : begin + FILL_AT_ONCE]
            self.request(some, reader)
            self.settle(some)

    def request(
        self,
        experts: np.ndarray,
        reader: Reader,
        keep: np.ndarray | None = None,
        *,
        speculative: bool = False,
    ) -> None:
        """Give `experts` (distinct members, at most as many as slots) their slots, and queue the reads of those not there.

        None of them pushes out another, nor one of `keep`: experts whose output is still to be computed. `speculative` reads
        wait for all others; asking for an expert again without it makes up for that.
        """
        kept = experts if keep is None else np.union1d(experts, keep)
        if self.table.guessed:
            self._came_true(self.table.guessed.keys() & set(experts.tolist()))
        for expert in self._coming.keys() & set(experts.tolist()):
            if self._coming[expert][0].failed:  # of an earlier pass, that another error ended: read again
                del self._coming[expert]
                self.table.free(expert)
                self.changed = True
            elif not speculative:
                reader.hurry(self._coming[expert][0])
        for expert, slot, victim in self.table.demand(experts, kept):
            if victim in self._coming:
                load, _ = self._coming.pop(victim)
                load.cancel()
                load.join()  # what had begun still writes into the slot
            self._queue(expert, slot, reader, speculative=speculative)

    def settle(self, experts: np.ndarray) -> None:
        """Return when all of `experts` are in their slots. Raises `ReadError` if one cannot be read."""
        coming = sorted(self._coming.keys() & set(experts.tolist()))
        if not coming:
            return
        with self._stats.timed("io_ms"):
            for expert in coming:
                self._coming[expert][0].join()
        failures = []
        for expert in coming:
            load, staging = self._coming.pop(expert)
            try:
                load.wait()
            except Exception as e:  # what the slot holds must not pass for a hit later
                failures.append(e)
                self.table.free(expert)
                self.changed = True
                continue
            if staging is not None:
                with self._stats.timed("quantize_ms"):
                    self._quantize_into(int(self.table.slot_of[expert]), memoryview(staging))
        if failures:
            raise failures[0]

    def guess(self, experts: np.ndarray, time: int, reader: Reader) -> None:
        """Start to read those of `experts` that token `time` will probably want.

        Never pushes out a warmer expert, nor one whose reads are under way.
        """
        for expert in map(int, experts):
            if self.table.slot_of[expert] >= 0:
                continue
            placed = self.table.guess(expert, time, np.array([*experts, *self._coming], np.int64))
            if placed is not None:
                self._queue(expert, placed[0], reader, speculative=True)
                self._stats.prefetch_issued += 1
                self._stats.prefetch_bytes += self.layer.expert_bytes

    def forget(self) -> None:
        """Empty all slots that are not pinned."""
        for load, _ in self._coming.values():
            load.cancel()
        for load, _ in self._coming.values():
            load.join()  # what had begun still writes into its slot
        self._coming.clear()
        self.table.clear()
        self.changed = True

    def _came_true(self, experts: set[int]) -> None:
        """Count guesses that came true, and how long their reads had run by now."""
        now = perf_counter()
        loads = [self._coming[e][0] for e in experts if e in self._coming]
        begun = [load.begun for load in loads if load.begun is not None]
        if begun:
            ended = max(now if load.ended is None else load.ended for load in loads)
            self._stats.prefetch_hidden_ms += (ended - min(begun)) * 1e3
        self._stats.prefetch_useful += len(experts)
        self._stats.prefetch_useful_bytes += len(experts) * self.layer.expert_bytes
        for expert in experts:
            del self.table.guessed[expert]

    def _queue(self, expert: int, slot: int, reader: Reader, *, speculative: bool) -> None:
        self.changed = True
        pieces, checks = [], []
        for file, offset, nbytes, memory, section in self._straight:
            into = memory[slot * nbytes : (slot + 1) * nbytes]
            pieces.append(Piece(file[expert], offset[expert], into))
            checks.append((section, into))
        staging = bytearray(self._staging_bytes)
        conversions: list[Callable[[], None]] = []
        for tensor, places in self._staged:
            views = [memoryview(staging)[at : at + part.nbytes] for part, at in places]
            for (part, _), into in zip(places, views, strict=True):
                pieces.append(Piece(int(part.file[expert]), int(part.offset[expert]), into))
                checks.append((part.section, into))
            target = self._arrays[tensor.name].memory[slot]
            if tensor.parts:
                conversions.append(functools.partial(reader.make, target, functools.partial(put_together, views, tensor)))
            elif tensor.projection not in self._requantize or tensor.tensor == "bias":
                conversions.append(functools.partial(reader.make, target, functools.partial(to_float32, views[0], tensor)))
        label = f"{self.layer.block} expert {expert}"
        if self._verify:
            conversions.insert(0, functools.partial(self.layer.verify, expert, checks))
        if self.layer.zeros:
            conversions.append(functools.partial(self._derive_biases, slot))

        def finish() -> None:
            for convert in conversions:
                convert()

        load = reader.submit(
            pieces, label, speculative=speculative, finish=finish if conversions else None, layer=self._number
        )
        self._coming[expert] = (load, staging if self._requantize else None)

    def _derive_biases(self, slot: int) -> None:
        """Minus the code of a zero weight times the scales. At INT4's own width that code is 8, and this is exact in every
        float type: a change of sign and exponent alone."""
        for projection, zero in self.layer.zeros.items():
            if projection not in self._requantize:
                scales = self._arrays[f"{projection}.scales"].memory[slot]
                biases = self._arrays[f"{projection}.biases"].memory[slot]
                if scales.dtype == np.uint16:  # bfloat16, which numpy does not know
                    wide = np.left_shift(scales, 16, dtype=np.uint32).view(np.float32) * np.float32(-zero)
                    biases[...] = to_bytes(wide, "BF16").view(np.uint16).reshape(biases.shape)
                else:
                    np.multiply(scales, -zero, out=biases)

    def _goes_straight(self, tensor: ExpertTensor) -> bool:
        if tensor.parts or (tensor.projection in self._requantize and tensor.tensor != "bias"):
            return False
        return slot_dtype(tensor, self._compute) == STORED[tensor.dtype]

    def _quantize_into(self, slot: int, staging: memoryview) -> None:
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


def slot_tensors(
    layer: ExpertLayer, requantize: dict[str, Requantize], compute: mx.Dtype | None
) -> list[tuple[str, tuple[int, ...], mx.Dtype]]:
    """Name, shape and type of every tensor that one slot of a bank holds."""
    out = []
    for tensor in layer.tensors:
        new = requantize.get(tensor.projection)
        if new is None or tensor.tensor == "bias":
            out.append((tensor.name, tensor.shape, slot_dtype(tensor, compute)))
            if tensor.projection in layer.zeros and tensor.tensor == "scales":
                out.append((f"{tensor.projection}.biases", tensor.shape, slot_dtype(tensor, compute)))
        elif tensor.tensor == "weight":
            rows, columns = tensor.shape[0], layer.input_dims(tensor.projection)
            scale_dtype = compute or STORED[(layer.tensor(f"{tensor.projection}.scales") or tensor).dtype]
            out.append((tensor.name, (rows, columns * new.bits // 32), mx.uint32))
            for name in ("scales", "biases"):
                out.append((f"{tensor.projection}.{name}", (rows, columns // new.group_size), scale_dtype))
    return out


def slot_bytes(layer: ExpertLayer, requantize: dict[str, Requantize], compute: mx.Dtype | None) -> int:
    """Bytes of one slot."""
    return sum(int(np.prod(shape)) * dtype.size for _, shape, dtype in slot_tensors(layer, requantize, compute))


def to_float32(source: memoryview, tensor: ExpertTensor, target: np.ndarray) -> None:
    """Widen bfloat16 or float16 bytes into float32 memory; both conversions are exact."""
    if tensor.dtype == "BF16":
        codes = np.frombuffer(source, np.uint16).reshape(tensor.shape)
        np.left_shift(codes, 16, out=target.view(np.uint32), dtype=np.uint32)
    else:
        target[...] = np.frombuffer(source, np.float16).reshape(tensor.shape)


def put_together(views: list[memoryview], tensor: ExpertTensor, target: np.ndarray) -> None:
    """Codes from the streams of their upper bits and of what is below them."""
    streams = [np.frombuffer(view, np.uint8) for view in views]
    out = target.reshape(-1).view(np.uint8)
    codes = streams[0]
    for number, lower in enumerate(streams[1:], start=1):
        into = out if number == len(streams) - 1 else np.empty(len(codes) + len(lower), np.uint8)
        bits = tensor.bits * len(into) // len(out)
        join(codes, lower, bits, into)
        codes = into


def to_mlx(source: memoryview, tensor: ExpertTensor, compute: mx.Dtype | None) -> mx.array:
    """Bytes as an MLX array, floats in the compute type."""
    stored = STORED[tensor.dtype]
    array = mx.array(np.frombuffer(source, RAW[stored]).reshape(tensor.shape))
    array = array.view(mx.bfloat16) if stored == mx.bfloat16 else array
    return array.astype(slot_dtype(tensor, compute))


def requantized(tensors: dict[str, mx.array], new: Requantize) -> tuple[mx.array, mx.array, mx.array]:
    """Weight codes, scales and biases of one projection at its new width."""
    weight = tensors["weight"]
    if new.source is not None:
        affine = new.source["mode"] == "affine"
        biases = tensors.get("biases", -8 * tensors["scales"]) if affine else None
        weight = mx.dequantize(weight, tensors["scales"], biases, **new.source)
    codes, scales, offsets = mx.quantize(weight, group_size=new.group_size, bits=new.bits)
    return codes, scales, offsets
