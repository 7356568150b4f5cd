"""Muon for the matrices, AdamW for the rest, and a learning rate that follows the clock.

Muon's update is scaled to AdamW's root mean square ("Muon is Scalable for LLM Training", arXiv 2502.16982, as in Kimi's
own training), so one learning rate and one weight decay serve both. The router counts as "the rest".
"""

import math

import mlx.core as mx


def is_matrix(name: str, weight: mx.array) -> bool:
    return weight.ndim >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate."))


def orthogonal(matrix: mx.array) -> mx.array:
    """Newton-Schulz to the nearest (semi-)orthogonal matrix, over leading axes at once (Muon, K. Jordan 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.swapaxes(-1, -2) if tall else matrix).astype(mx.bfloat16)
    x = x * mx.rsqrt((x * x).sum(axis=(-2, -1), keepdims=True) + 1e-12)
    for _ in range(5):
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.swapaxes(-1, -2) if tall else x).astype(mx.float32)


def updated(
    name: str,
    weight: mx.array,
    gradient: mx.array,
    moments: tuple[mx.array, mx.array],
    count: mx.array,
    rate: mx.array,
    decay: float,
) -> tuple[mx.array, mx.array, mx.array]:
    """One step of Muon (matrices) or AdamW (the rest), the `count`-th: (weight, first moment, second moment)."""
    first, second = moments
    if is_matrix(name, weight):
        first = 0.95 * first + gradient
        direction = orthogonal(gradient + 0.95 * first) * (0.2 * math.sqrt(max(weight.shape[-2:])))
    else:
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient * gradient
        direction = first / (1 - 0.9**count) / (mx.sqrt(second / (1 - 0.95**count)) + 1e-8)
    shrink = decay if weight.ndim >= 2 else 0.0
    return weight - rate * (direction + shrink * weight), first, second


def rate_at(share: float, peak: float, warmup_share: float) -> float:
    """Learning rate once `share` of the time is over: linear warm-up to the peak, then half a cosine down to zero."""
    warm = min(1.0, share / warmup_share)
    return peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
