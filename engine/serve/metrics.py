"""Metrics of the server as Prometheus text, in a registry that belongs to one server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from engine.serve.compute.job import Figures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
disable_created_metrics()
TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of the requests, and gauges of the engine and the queue that are read at each scrape."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        where: Any = {"registry": self._registry, "namespace": "headrace"}
        self.requests = Counter("requests", "Requests by endpoint and HTTP status.", ("endpoint", "status"), **where)
        self.prompt_tokens = Counter("prompt_tokens", "Prompt tokens, cached ones included.", **where)
        self.cached_tokens = Counter("prompt_tokens_cached", "Prompt tokens taken from the prompt cache.", **where)
        self.prompt_seconds = Counter("prompt_seconds", "Time of prefill, seconds.", **where)
        self.completion_tokens = Counter("completion_tokens", "Generated tokens.", **where)
        self.decode_seconds = Counter("decode_seconds", "Time of decoding, seconds.", **where)
        self.ttft = Histogram("ttft_seconds", "Time to first token, waiting included.", buckets=TTFT_BUCKETS, **where)
        self.last = {"prefill_tok_s": 0.0, "decode_tok_s": 0.0}

    def finished(self, figures: Figures) -> None:
        """Count a request that computed, whether it ended well or not."""
        self.prompt_tokens.inc(figures.prompt_tokens)
        self.cached_tokens.inc(figures.cached_tokens)
        self.prompt_seconds.inc(figures.prompt_s)
        self.completion_tokens.inc(figures.completion_tokens)
        self.decode_seconds.inc(figures.decode_s)
        if figures.completion_tokens:
            self.ttft.observe(figures.ttft_s)
        self.last["prefill_tok_s"] = figures.prompt_tok_s or self.last["prefill_tok_s"]
        self.last["decode_tok_s"] = figures.decode_tok_s or self.last["decode_tok_s"]

    def watch(self, generator: Any) -> None:
        """Show the engine, the queue and the prompt cache of a generation thread from now on."""
        self._registry.register(_Live(generator, self.last))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Live:
    """Collector of what is read at the time of a scrape."""

    def __init__(self, generator: Any, last: dict[str, float]) -> None:
        self._generator = generator
        self._last = last
        self._process = psutil.Process()

    def collect(self) -> Iterator[Any]:
        generator, stats = self._generator, self._generator.engine.stats
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "up": ("1 while the generation thread runs.", lambda: float(generator.generation_available())),
            "requests_running": ("Requests that compute now.", lambda: generator.waiting.running),
            "requests_waiting": ("Requests in the queue.", lambda: generator.waiting.waiting),
            "hit_rate": ("Expert cache hits as a share of requests, since the start.", lambda: stats.hit_rate or 0.0),
            "prefill_tok_s": ("Prefill speed of the last request, tokens/s.", lambda: self._last["prefill_tok_s"]),
            "decode_tok_s": ("Decode speed of the last request, tokens/s.", lambda: self._last["decode_tok_s"]),
            "prompt_cache_bytes": ("Memory of the prompt cache.", lambda: generator.cache.nbytes),
            "prompt_cache_sequences": ("Sequences in the prompt cache.", lambda: len(generator.cache)),
            "process_memory_bytes": ("Resident memory of the process.", lambda: self._process.memory_info().rss),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"headrace_{name}", text, value=value())
        for name, text, count in (
            ("experts_hit", "Requests of an expert that was cached.", stats.hits),
            ("experts_missed", "Requests of an expert that was read.", stats.misses),
            ("bytes_read", "Bytes of experts read from the disk.", stats.bytes_read),
        ):
            yield CounterMetricFamily(f"headrace_{name}", text, value=count)
