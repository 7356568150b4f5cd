"""Usage, timings and the log line."""

from __future__ import annotations

from engine.serve.api.usage import log_line, timings, usage
from engine.serve.compute.job import Figures

FIGURES = Figures(100, 40, 10, 0.5, 2.0, 4.0, 2.6, 30, 10, 70_000_000, shared=False)
EMPTY = Figures(5, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, shared=False)


def test_counts_and_speeds() -> None:
    assert usage(FIGURES)["total_tokens"] == 110 and usage(FIGURES)["prompt_tokens_details"] == {"cached_tokens": 40}
    found = timings(FIGURES, None)
    assert (found["prompt_n"], found["prompt_per_second"], found["predicted_per_second"]) == (60, 30.0, 2.5)
    assert found["hit_rate"] == 0.75 and found["gb_read"] == 0.07 and "warning" not in found
    assert timings(FIGURES, "beware")["warning"] == "beware"


def test_a_request_without_tokens_has_no_speed() -> None:
    found = timings(EMPTY, None)
    assert found["predicted_per_second"] is None and found["hit_rate"] is None
    assert log_line(EMPTY) == "5 + 0 tokens (0 cached)"


def test_a_log_line() -> None:
    assert log_line(FIGURES) == "100 + 10 tokens (40 cached), TTFT 2.60 s, 2.5 tok/s, hit rate 0.75, 1.00 MB/token"
