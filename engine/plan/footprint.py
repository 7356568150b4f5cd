"""Footprint: the memory that a model takes under given knobs and a context, computed from its headers and its structure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.known import opened
from engine.errors import HeadraceError, KnobError, first_line
from engine.knobs import GB, Knobs
from engine.model.backend import backend, compute_dtype, usable_memory_bytes
from engine.system.memory import memory_bytes

from . import chunk as chunks
from .banks import BankPlan, distribute, least_banks, plan_bits
from .bits import BitsPlan
from .chunk import Chunk, ChunkMemory, choose_chunk

if TYPE_CHECKING:
    from .memory.activations import PassMemory

CONTEXT = 512  # tokens, if the caller has no text
ROOM = 0.8  # share of memory that weights may fill where no study limits it


@dataclass(frozen=True)
class Parts:
    """The parts of a predicted peak, GB (10^9 bytes). Their sum is the peak of the process."""

    resident: float  # all weights but the routed experts
    experts: float  # slots, or all routed experts
    kv: float  # keys and values or states of the context
    activations: float  # what a prefill chunk computes, logits included, or a second copy of the largest weight on loading
    staging: float  # experts in flight and the reader threads' buffers
    mlx_cache: float  # limit of MLX's cache of freed buffers
    process: float  # Python, libraries, threads and tokenizer

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model under given knobs, in GB (10^9 bytes), as laid out in memory of MLX's `backend`."""

    architecture: str
    fingerprint: str
    moe_layers: int
    experts: int  # routed, over all layers
    top_k: int
    expert_bits: int  # of the checkpoint
    levels: tuple[int, ...]  # widths in a packed store; empty for other checkpoints
    shared_layers: int  # layers of a store that have another layer's records; 0 for a real model
    one_token_gb: float  # smallest legal cache_gb, whichever experts are hot
    all_experts_gb: float  # smallest cache_gb that holds every expert
    resident_gb: float  # all other weights: attention, routers, shared experts, embeddings
    context: int  # tokens of the longest text
    prefill_chunk: int  # tokens: that of the knob, or what `auto` stands for
    prefill_chunk_reason: str
    predicted_peak_gb: float  # of the process: the sum of `parts_gb`
    parts_gb: Parts
    backend: str  # cpu, cuda or metal


@dataclass(frozen=True)
class Weights:
    """The weights of a model under given knobs, GB (10^9 bytes)."""

    one_token_gb: float
    all_experts_gb: float
    resident_gb: float
    cached_gb: float  # experts that stay in memory

    @property
    def total_gb(self) -> float:
        return self.resident_gb + self.cached_gb


def footprint(checkpoint: str | Path | Checkpoint, knobs: Knobs | None = None, context: int = CONTEXT) -> Footprint:
    """Return the sizes of a checkpoint under `knobs`, and the peak memory of a run whose longest text has `context` tokens.

    Each combination of context, chunk size and resident bits opens mlx-lm's module once, without reading weights. Raises
    `CheckpointError`, also for an unknown architecture, and `KnobError` for a `top_k` or `resident_bits` that the model
    cannot have. A `cache_gb` below `one_token_gb` is not an error here; `load` refuses it.
    """
    from .memory.activations import pass_memory  # importing mlx-lm takes about a second

    knobs = knobs or Knobs()
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else opened(checkpoint)
    checkpoint = checkpoint.with_top_k(knobs.top_k)
    banks = least_banks(checkpoint, plan_bits(checkpoint, knobs))
    weights = _weights(checkpoint, knobs, banks)
    chunk = _as_set(knobs) or _chosen(checkpoint, knobs, banks, weights)
    memory = pass_memory(checkpoint, context=context, chunk=chunk.tokens, resident_bits=knobs.resident_bits)
    parts = _parts(checkpoint, knobs, banks, weights, memory, min(context, chunk.tokens))
    return Footprint(
        architecture=checkpoint.architecture,
        fingerprint=checkpoint.fingerprint,
        moe_layers=len(checkpoint.layers),
        experts=checkpoint.experts,
        top_k=checkpoint.top_k,
        expert_bits=checkpoint.expert_bits,
        levels=checkpoint.levels or (),
        shared_layers=checkpoint.shared_layers,
        one_token_gb=weights.one_token_gb,
        all_experts_gb=weights.all_experts_gb,
        resident_gb=weights.resident_gb,
        context=context,
        prefill_chunk=chunk.tokens,
        prefill_chunk_reason=chunk.why,
        predicted_peak_gb=parts.total,
        parts_gb=parts,
        backend=backend(),
    )


def chunk_for(checkpoint: Checkpoint, knobs: Knobs) -> Chunk:
    """Return the prefill chunk of a setting: that of the knob, or what `auto` stands for with this model on this machine.

    It depends neither on a text nor on the memory that is free at the moment, so equal settings have equal chunks. The first
    call for a model opens mlx-lm's module as `footprint` does. Raises as `footprint` does.
    """
    if (chunk := _as_set(knobs)) is not None:
        return chunk
    checkpoint = checkpoint.with_top_k(knobs.top_k)
    banks = least_banks(checkpoint, plan_bits(checkpoint, knobs))
    return _chosen(checkpoint, knobs, banks, _weights(checkpoint, knobs, banks))


def _as_set(knobs: Knobs) -> Chunk | None:
    return Chunk(knobs.prefill_chunk, "as set") if knobs.prefill_chunk else None


def _chosen(checkpoint: Checkpoint, knobs: Knobs, banks: list[BankPlan], weights: Weights) -> Chunk:
    from .memory.activations import pass_memory  # importing mlx-lm takes about a second

    context = min(chunks.CONTEXT, checkpoint.context_limit or chunks.CONTEXT)

    def memory(tokens: int) -> ChunkMemory:
        one = pass_memory(checkpoint, context=context, chunk=tokens, resident_bits=knobs.resident_bits)
        parts = _parts(checkpoint, knobs, banks, weights, one, min(context, tokens), process=0)
        return ChunkMemory(one.activations, round(parts.total * GB))

    try:
        return choose_chunk(memory, context=context, usable=usable_memory_bytes(), largest=chunks.LARGEST[backend()])
    except HeadraceError:
        raise
    except Exception as e:  # a module that MLX cannot trace still runs
        return Chunk(chunks.UNKNOWN, f"its memory cannot be predicted: {first_line(e)}")


def weights_of(checkpoint: Checkpoint, knobs: Knobs) -> Weights:
    """Return the sizes of the weights alone, from the headers. Raises as `footprint` does."""
    return _weights(checkpoint, knobs, least_banks(checkpoint, plan_bits(checkpoint, knobs)))


def cache_within(weights: Weights, room_gb: float) -> float:
    """Return the largest useful `cache_gb` within `room_gb` of memory; at least one token's experts."""
    return max(min(room_gb, weights.all_experts_gb), weights.one_token_gb)


def refuse_too_large(source: Checkpoint, knobs: Knobs) -> None:
    """Raise `KnobError` for a setting that cannot fit into memory, before the first byte is read."""
    need, have = weights_of(source, knobs), memory_bytes() / GB
    if need.total_gb > have:
        room = have - need.resident_gb
        fits = room > need.one_token_gb
        remedy = f"set cache_gb below {room:.4g}" if fits else "no cache_gb fits; use a machine with more memory"
        what = "every expert resident" if knobs.cache_gb is None else f"cache_gb={knobs.cache_gb:g}"
        raise KnobError(
            f"{what} with {need.resident_gb:.4g} GB of other weights takes {need.total_gb:.4g} GB, more than the "
            f"{have:.4g} GB of memory here; {remedy}"
        )


def experts_gb(checkpoint: Checkpoint, plan: BitsPlan) -> float:
    """Return the memory of all experts with these bits, GB (10^9 bytes)."""
    return sum(len(bank.members) * bank.slot_bytes for bank in least_banks(checkpoint, plan)) / GB


def _weights(checkpoint: Checkpoint, knobs: Knobs, banks: list[BankPlan]) -> Weights:
    least = sum(b.least * b.slot_bytes for b in banks)
    everything = sum(len(b.members) * b.slot_bytes for b in banks)
    resident = checkpoint.resident_bytes(widened=compute_dtype() is not None)
    if knobs.resident_bits is not None:
        from engine.model.resident import resident_bytes_at  # importing mlx-lm takes about a second

        resident = resident_bytes_at(checkpoint, knobs.resident_bits)
    cached = everything if knobs.cache_gb is None else min(everything, knobs.cache_gb * GB)
    return Weights(least / GB, everything / GB, resident / GB, cached / GB)


def _parts(
    checkpoint: Checkpoint, knobs: Knobs, banks: list[BankPlan], weights: Weights, memory: PassMemory, tokens: int,
    process: int | None = None,
) -> Parts:  # fmt: skip
    """The parts of the peak. `process`: bytes to count for the process, which is measured otherwise."""
    from engine.model.buffer_cache import buffer_cache_bytes

    from .memory.process import process_bytes, tokenizer_bytes
    from .memory.staging import staging_bytes

    streamed = knobs.streams or knobs.verify_reads or checkpoint.levels is not None
    if streamed:
        for bank in banks:
            bank.slots = len(bank.members) if knobs.cache_gb is None else bank.least
        if knobs.cache_gb is not None:
            distribute(banks, round((weights.cached_gb - weights.one_token_gb) * GB), knobs.cache_layer_shape)
    staging = staging_bytes(checkpoint, knobs, banks, tokens) if streamed else 0
    if process is None:  # the measurement loads a model, which needs a chunk itself
        process = process_bytes() + tokenizer_bytes(checkpoint.path)
    loading = memory.loading_streamed if streamed else memory.loading
    activations = max(memory.activations, loading - memory.kv - staging)
    return Parts(
        weights.resident_gb, weights.cached_gb, memory.kv / GB, activations / GB, staging / GB, buffer_cache_bytes() / GB,
        process / GB,
    )  # fmt: skip
