"""Usage: the token counts and timings at the end of an answer, and the request's line in the log."""

from __future__ import annotations

from typing import Any

from engine.knobs import GB
from engine.serve.compute.job import Figures

WARNING = "the knobs {knobs} depend on what is cached: the same request may give another answer"


def usage(figures: Figures) -> dict[str, Any]:
    """The field `usage` of the OpenAI API."""
    return {
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.completion_tokens,
        "total_tokens": figures.prompt_tokens + figures.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": figures.cached_tokens},
    }


def timings(figures: Figures, warning: str | None) -> dict[str, Any]:
    """The field `timings` of llama.cpp's server, with the engine's figures.

    prompt_n counts the tokens that were computed; cache_n those taken from the prompt cache. hit_rate and gb_read cover
    everything computed while the request ran; `shared` says that other requests ran beside it.
    """
    found: dict[str, Any] = {
        "prompt_n": figures.processed_tokens,
        "prompt_ms": _ms(figures.prompt_s),
        "prompt_per_second": _rate(figures.prompt_tok_s),
        "predicted_n": figures.completion_tokens,
        "predicted_ms": _ms(figures.decode_s),
        "predicted_per_second": _rate(figures.decode_tok_s),
        "cache_n": figures.cached_tokens,
        "queue_ms": _ms(figures.queue_s),
        "ttft_ms": _ms(figures.ttft_s),
        "hit_rate": None if figures.hit_rate is None else round(figures.hit_rate, 4),
        "gb_read": round(figures.bytes_read / GB, 6),
        "shared": figures.shared,
    }
    return found if warning is None else {**found, "warning": warning}


def log_line(figures: Figures) -> str:
    """`12 + 34 tokens (8 cached), TTFT 0.12 s, 45.1 tok/s, hit rate 0.83, 0.5 MB/token`."""
    parts = [f"{figures.prompt_tokens} + {figures.completion_tokens} tokens ({figures.cached_tokens} cached)"]
    if figures.completion_tokens:
        parts.append(f"TTFT {figures.ttft_s:.2f} s")
    if figures.decode_tok_s is not None:
        parts.append(f"{figures.decode_tok_s:.1f} tok/s")
    if figures.hit_rate is not None:
        parts.append(f"hit rate {figures.hit_rate:.2f}")
        computed = figures.processed_tokens + figures.completion_tokens
        parts.append(f"{figures.bytes_read / 1e6 / max(1, computed):.2f} MB/token")
    return ", ".join(parts)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _rate(per_second: float | None) -> float | None:
    return None if per_second is None else round(per_second, 3)
