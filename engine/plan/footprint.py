"""Footprint: the memory that a model takes under given knobs, computed from its headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import GB, Knobs
from engine.model.backend import backend, compute_dtype

from .banks import least_banks, plan_bits
from .bits import BitsPlan


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
    one_token_gb: float  # smallest legal cache_gb, whichever experts are hot
    all_experts_gb: float  # smallest cache_gb that holds every expert
    resident_gb: float  # all other weights: attention, routers, shared experts, embeddings
    predicted_peak_gb: float  # resident and cached weights, without the interpreter and activations
    backend: str  # cpu, cuda or metal


def footprint(checkpoint: str | Path | Checkpoint, knobs: Knobs | None = None) -> Footprint:
    """Return the sizes of a checkpoint under `knobs`.

    Raises `CheckpointError`, also for an unknown architecture, and `KnobError` for a `top_k` or `resident_bits` that the
    model cannot have. A `cache_gb` below `one_token_gb` is not an error here; `load` refuses it.
    """
    knobs = knobs or Knobs()
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    checkpoint = checkpoint.with_top_k(knobs.top_k)
    banks = least_banks(checkpoint, plan_bits(checkpoint, knobs))
    least = sum(b.least * b.slot_bytes for b in banks)
    everything = sum(len(b.members) * b.slot_bytes for b in banks)
    resident = checkpoint.resident_bytes(widened=compute_dtype() is not None)
    if knobs.resident_bits is not None:
        from engine.model.resident import resident_bytes_at  # importing mlx-lm takes about a second

        resident = resident_bytes_at(checkpoint, knobs.resident_bits)
    cached = everything if knobs.cache_gb is None else min(everything, knobs.cache_gb * GB)
    return Footprint(
        architecture=checkpoint.architecture,
        fingerprint=checkpoint.fingerprint,
        moe_layers=len(checkpoint.layers),
        experts=sum(layer.experts for layer in checkpoint.layers),
        top_k=checkpoint.top_k,
        expert_bits=checkpoint.expert_bits,
        levels=checkpoint.levels or (),
        one_token_gb=least / GB,
        all_experts_gb=everything / GB,
        resident_gb=resident / GB,
        predicted_peak_gb=(resident + cached) / GB,
        backend=backend(),
    )


def experts_gb(checkpoint: Checkpoint, plan: BitsPlan) -> float:
    """Return the memory of all experts with these bits, GB (10^9 bytes)."""
    return sum(len(bank.members) * bank.slot_bytes for bank in least_banks(checkpoint, plan)) / GB
