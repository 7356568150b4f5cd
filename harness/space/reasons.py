"""Reasons: why a knob is not in a derived space."""

from __future__ import annotations

# Knobs that no derived space has, whatever the checkpoint and the machine.
NEVER = {
    "prefill_chunk": "auto takes the largest that the memory allows",
    "pinned_share": "it pins nothing where the cache holds one token's experts",
    "cache_layer_shape": "it has no effect where the cache holds one token's experts",
    "cold_drop": "its loss depends on what is cached, so each trial would have to measure quality again",
    "cache_prior": "its loss depends on what is cached, so each trial would have to measure quality again",
    "top_k": "it makes another model of it; set it by hand",
    "resident_bits": "it changes every token for weights that are small beside the experts; set it by hand",
    "freq_exponent": "hot_share already selects by how often an expert is used",
    "bits_plan": "a file with the bits of every expert; make one with python -m engine plan",
    "verify_reads": "a check, which has nothing to search",
    "ssd_gbps": "a simulated disk; nothing is held back",
    "mlx_ops_per_buffer": "no gain for streaming has been reported",
    "mlx_mb_per_buffer": "no gain for streaming has been reported",
}
OF_ONE_BACKEND = {"metal": "it exists on Metal alone", "cuda": "it exists on CUDA alone"}


def on_cpu(backend: str | None) -> str:
    """Why windows are not offered where no GPU computes."""
    if backend is None:
        return "it is not known whether a sync costs time with this engine"
    return "on the CPU a sync costs microseconds, and a rejected pass the computing of a whole token"


def not_packed(name: str, bits: int | None) -> str:
    """Why fewer bits than stored are not offered on a checkpoint that is not packed."""
    stored = "" if bits is None else f", with experts of {bits} bits"
    return f"{name} is not packed{stored}: fewer bits would read each expert whole and quantize it again at every load"
