"""Soak: minutes of random requests, with the process's memory and descriptors over time."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import mlx.core as mx
import psutil

from .clients import Clients

SAMPLES = 200  # over the whole time, at most one a second
CONCURRENT = 3
SEED = 13


def soak(clients: Clients, generator: Any, minutes: float, prompts: list[str], tokens: int) -> dict[str, Any]:
    """Run for `minutes`. Returns the answers by status and, for each measure, its median in the second and in the last
    quarter of the time: the first quarter fills the caches."""
    seconds = minutes * 60
    samples: list[dict[str, float]] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(max(0.2, min(1.0, seconds / SAMPLES))):
            samples.append({"s": time.perf_counter() - begin, **state(generator)})

    begin = time.perf_counter()
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        found = clients.send("soak", seconds=seconds, clients=CONCURRENT, prompts=prompts, tokens=tokens, seed=SEED)
    finally:
        ended.set()
        sampler.join()
    return {"minutes": minutes, **found, **trend(samples, found["counts"])}


def state(generator: Any) -> dict[str, float]:
    """Memory of the process and of MLX, bytes of the prompt cache, threads and descriptors."""
    process = psutil.Process()
    return {
        "process_mb": process.memory_info().rss / 1e6,
        "mlx_mb": mx.get_active_memory() / 1e6,
        "prompt_cache_mb": generator.cache.nbytes / 1e6,
        "threads": float(threading.active_count()),
        "descriptors": float(process.num_fds()),
    }


def trend(samples: list[dict[str, float]], counts: dict[str, int]) -> dict[str, Any]:
    """`early` and `late`: medians of the second and of the last quarter of the samples. Prints both."""
    quarter = max(1, len(samples) // 4)
    names = [name for name in samples[0] if name != "s"] if samples else []
    early = {name: statistics.median(s[name] for s in samples[quarter : 2 * quarter] or samples) for name in names}
    late = {name: statistics.median(s[name] for s in samples[-quarter:]) for name in names}
    print("soak: " + ", ".join(f"{count} x {status}" for status, count in sorted(counts.items())))
    for name in names:
        print(f"  {name:<18}{early[name]:>10.1f} ->{late[name]:>10.1f}")
    return {"samples": len(samples), "early": early, "late": late}
