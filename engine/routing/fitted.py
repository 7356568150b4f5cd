"""Fitted: parameters of synthetic routing, fitted to recorded traces of real models by `engine.routing.synthetic.fit`.

Over cache sizes of 1/16 to 3/4 of the experts, hit rates of the synthetic routing are within 5 points of those of the trace.
"""

from __future__ import annotations

from .synthetic import Locality

FITTED = {
    "qwen3_30b_a3b": Locality(
        1.0,
        0.684,
        73.386,
        0.346,
        (0.557, 0.964, 1.219, 1.219, 1.043, 1.127, 1.668, 1.127, 1.319, 1.219, 2.467, 1.219, 1.043, 1.127, 1.219, 1.127),
        "Qwen3-30B-A3B, 6 of its 8 experts, 128 decoded tokens (BigMoeOnEdge)",
    ),
    "olmoe_1b_7b": Locality(
        0.803,
        0.923,
        37.552,
        1.462,
        (0.477, 0.477, 0.762, 1.219, 2.885, 2.885, 2.885, 2.885, 1.319, 1.319, 0.603, 1.127, 0.964, 1.043, 1.542, 1.803),
        "OLMoE-1B-7B, 299 decoded tokens (sqliteai/waste)",
    ),
    "kimi_mini": Locality(
        0.595,
        1.0,
        32.322,
        1.174,
        (0.964, 0.891, 0.891, 1.043, 1.219, 2.281),
        "kimi_mini, 768 tokens (experiments/kimi_mini/routing_trace.parquet)",
    ),
}
DEFAULT = "qwen3_30b_a3b"  # the largest of them
