"""Known truth: a fake engine that computes the cost of streaming, so a search can be compared with the optimum.

The model has 15,872 experts of 14 million weights, of which a token uses 496. The machine has 64 GB and a disk of 6 GB/s.
A larger cache has more hits but leaves less memory to the page cache. Prefetch overlaps reads with computation; its wrong
predictions cost bandwidth. Small blocks and few threads do not saturate the disk; many threads slow the computation. Fewer
bits are faster and smaller, and raise perplexity. `truth` has no noise; `measure` adds the noise of real machines.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.analysis.hypervolume import volume
from harness.results.metrics import OBJECTIVES
from harness.space.parse import space_from_config
from harness.space.space import Space

EXPERTS, USES, WEIGHTS = 15_872, 496, 14e6
MEMORY_GB, RESIDENT_GB, DISK_GBPS = 64.0, 5.0, 6.0
PERPLEXITY = {2: 9.4, 3: 6.6, 4: 5.7, 6: 5.3, 8: 5.2}
WORST = (0.0, 72.0, 10.0)  # tokens/s, GB, perplexity: the reference point of the hypervolume
BLOCKS_KIB = [64, 128, 256, 512, 1024, 2048, 4096, 8192]
SPACE: dict[str, Any] = {
    "cache_gb": {"type": "float", "low": 4, "high": 60},
    "evict_half_life": {"type": "float", "low": 1, "high": 256, "log": True},
    "prefetch": {"type": "choice", "values": ["off", "stale_gate"]},
    "prefetch_depth": {"type": "int", "low": 1, "high": 4},
    "read_block_kib": {"type": "ordinal", "values": BLOCKS_KIB},
    "read_threads": {"type": "int", "low": 1, "high": 16},
    "io_mode": {"type": "choice", "values": ["buffered", "direct"]},
    "expert_bits": {"type": "ordinal", "values": [2, 3, 4, 6, 8]},
    "cold_bits": {"type": "ordinal", "values": [2, 3, None]},
    "hot_share": {"type": "float", "low": 0.1, "high": 0.9},
}


def space() -> Space:
    """Ten knobs without conditions, in the search's encoding."""
    return space_from_config(SPACE, {})


def truth(values: Mapping[str, Any]) -> dict[str, float]:
    """decode_tok_s, peak_memory_gb and perplexity of a setting, without noise."""
    bits, perplexity = _precision(values.get("expert_bits") or 8, values.get("cold_bits"), values.get("hot_share"))
    speed, memory = _streaming(
        bits,
        values["cache_gb"],
        values.get("evict_half_life", 16.0),
        values.get("prefetch_depth", 1) if values.get("prefetch", "off") != "off" else 0,
        values.get("read_block_kib", 4096),
        values.get("read_threads", 16),
        values.get("io_mode", "buffered") == "direct",
    )
    return {"decode_tok_s": float(speed), "peak_memory_gb": float(memory), "perplexity": perplexity}


def measure(
    values: Mapping[str, Any], rng: np.random.Generator, noise: float = 0.04, outliers: float = 0.05
) -> dict[str, float]:
    """`truth` with lognormal noise on speed, of relative size `noise`; a share `outliers` of runs is 10 to 40 % slower."""
    figures = truth(values)
    disturbed = rng.uniform(0.6, 0.9) if rng.random() < outliers else 1.0
    figures["decode_tok_s"] *= disturbed * float(np.exp(rng.normal(0, noise)))
    return figures


def _precision(expert_bits: int, cold_bits: int | None, hot_share: float | None) -> tuple[float, float]:
    """Average bits of a weight, and perplexity. Hot experts are the most used ones."""
    if cold_bits is None or cold_bits >= expert_bits:
        return expert_bits, PERPLEXITY[expert_bits]
    hot = 0.25 if hot_share is None else hot_share
    used = hot**0.4  # share of uses of the hot experts
    return hot * expert_bits + (1 - hot) * cold_bits, used * PERPLEXITY[expert_bits] + (1 - used) * PERPLEXITY[cold_bits]


def _streaming(bits: Any, cache_gb: Any, half_life: Any, depth: Any, block_kib: Any, threads: Any, direct: Any) -> Any:
    """Tokens/s and peak GB, for scalars or arrays of matching shapes."""
    expert_gb = WEIGHTS * (bits + 0.5) / 8 / 1e9
    everything = EXPERTS * expert_gb
    cached = np.minimum(cache_gb / everything, 1.0)
    hits = cached**0.45 * (1 - 0.02 * np.abs(np.log2(half_life / 16)) ** 1.5)
    spare = np.maximum(MEMORY_GB - RESIDENT_GB - cache_gb - 3, 0) / everything
    in_page_cache = np.where(direct, 0.0, np.minimum(0.6 * spare**0.6, 1.0))
    read_gb = USES * expert_gb * (1 - hits)
    in_flight = np.minimum(threads, 1 + USES / 60 * expert_gb * 1e9 / 1024 / block_kib)
    filled = (block_kib / (block_kib + np.where(direct, 160, 60))) * in_flight / (in_flight + 1.5)
    disk = DISK_GBPS * np.where(direct, 1.0, 0.75) * filled
    wasted = np.where(depth > 0, 0.12 + 0.14 * depth, 0.0)
    seconds_io = read_gb * (1 - in_page_cache) * (1 + wasted) / disk + read_gb * in_page_cache / 20
    seconds_compute = (0.035 + 0.004 * bits) * (1 + 0.004 * np.maximum(threads - 4, 0) ** 1.5)
    hidden = np.where(depth > 0, 0.45 + 0.1 * np.minimum(depth, 3), 0.0)
    overlap = np.minimum(hidden * seconds_io, 0.8 * seconds_compute)
    thrash = np.maximum(cache_gb + RESIDENT_GB - 0.85 * MEMORY_GB, 0) * 0.06  # swapping
    memory = RESIDENT_GB + np.minimum(cache_gb, everything) + threads * block_kib / 1e6 + 0.4 * depth
    return 1 / (seconds_io + seconds_compute - overlap + thrash), memory


def losses(figures: Mapping[str, float]) -> tuple[float, ...]:
    """The objectives with signs such that lower is better."""
    return tuple(-figures[n] if d == "maximize" else figures[n] for n, d in OBJECTIVES.items())


def hypervolume(points: np.ndarray) -> float:
    """The volume that (n, 3) losses dominate, up to `WORST`."""
    return volume(points, np.array([-WORST[0], WORST[1], WORST[2]]))


@functools.cache
def ideal(memory_limit_gb: float = float("inf")) -> float:
    """Hypervolume of the best possible front: a dense grid of 10 million settings, without those above the limit."""
    cache, depth, block, threads, direct = np.meshgrid(
        np.linspace(4, 60, 57), np.arange(5.0), np.array(BLOCKS_KIB), np.arange(1.0, 17), np.array([0.0, 1.0]), indexing="ij"
    )
    best: list[np.ndarray] = []
    shares = np.linspace(0.1, 0.9, 9)
    precisions: list[tuple[int, int | None, float | None]] = [(b, None, None) for b in PERPLEXITY]
    precisions += [(b, c, float(h)) for b, c, h in itertools.product(PERPLEXITY, (2, 3), shares) if b > c]
    for expert_bits, cold_bits, share in precisions:
        bits, perplexity = _precision(expert_bits, cold_bits, share)
        speed, memory = _streaming(bits, cache, 16.0, depth, block, threads, direct)
        fast, small = speed.ravel(), memory.ravel()
        fits = small <= memory_limit_gb
        order = np.argsort(small[fits])
        fast, small = fast[fits][order], small[fits][order]
        leads = np.append(True, fast[1:] > np.maximum.accumulate(fast)[:-1])
        best.append(np.column_stack([-fast[leads], small[leads], np.full(leads.sum(), perplexity)]))
    return hypervolume(np.concatenate(best))
