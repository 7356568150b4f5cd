"""Metrics as Prometheus text."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def test_every_metric_is_there_and_counts(client: Any) -> None:
    client.text("hello", max_tokens=5)
    client.text(model="other")
    deadline = time.monotonic() + 10
    counted = [("headrace_requests_total", "/v1/completions", status) for status in ("200", "404")]
    while [(samples := _samples(client)).get(name) for name in counted] != [1, 1]:
        assert time.monotonic() < deadline, "the requests are not counted"
        time.sleep(0.01)  # a request is counted after its answer, which its client already has
    assert samples[("headrace_prompt_tokens_total",)] == 5 and samples[("headrace_completion_tokens_total",)] == 5
    assert samples[("headrace_ttft_seconds_count",)] == 1 and samples[("headrace_bytes_read_total",)] > 0
    for name in ("up", "decode_tok_s", "hit_rate", "process_memory_bytes", "prompt_cache_bytes"):
        assert samples[(f"headrace_{name}",)] > 0, name
    assert samples[("headrace_requests_waiting",)] == samples[("headrace_requests_running",)] == 0


def _samples(client: Any) -> dict[tuple[str, ...], float]:
    reply = client.send("GET", "/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }
