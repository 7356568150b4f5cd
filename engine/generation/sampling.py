"""Sampling: how the next token is chosen, and when a text ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from engine.errors import HeadraceError

if TYPE_CHECKING:  # mlx-lm is imported in the methods, so that a command line is checked without it
    from mlx_lm.sample_utils import LogitsProcessor, Sampler

LOWEST_TEMPERATURE = 1e-3  # below it, scaled log-probabilities overflow float32 on large vocabularies
SEEDS = 2**64


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation, computed by mlx-lm's samplers and logits processors.

    `temperature` 0 always takes the most probable token; the other filters then have no effect. `top_p` 1, `min_p` 0,
    `top_k` 0 and `repetition_penalty` None switch their filter off. `top_k` is the number of tokens to choose from, not the
    knob of the same name. Raises `HeadraceError` for a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    stop: tuple[str, ...] = ()
    seed: int = 0
    max_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if not (_is_number(value) or (name == "repetition_penalty" and value is None)):
                raise HeadraceError(f"{name}={value!r} is not a finite number; give one, or leave it out")
        for name in ("top_k", "repetition_context_size", "seed", "max_tokens"):
            if type(getattr(self, name)) is not int:
                raise HeadraceError(f"{name}={getattr(self, name)!r} is not a whole number; give one, or leave it out")
        for ok, problem in (
            (
                self.temperature == 0 or self.temperature >= LOWEST_TEMPERATURE,
                f"temperature={self.temperature:g} is neither 0 nor at least {LOWEST_TEMPERATURE:g}; 0 takes the most "
                "probable token",
            ),
            (0 < self.top_p <= 1, f"top_p={self.top_p:g} is outside 0 (excluded) to 1; 1 keeps every token"),
            (0 <= self.min_p <= 1, f"min_p={self.min_p:g} is outside 0 to 1; 0 keeps every token"),
            (self.top_k >= 0, f"top_k={self.top_k} is below 0; 0 keeps every token"),
            (
                self.repetition_penalty is None or self.repetition_penalty > 0,
                f"repetition_penalty={self.repetition_penalty} is not above 0; 1 changes nothing, 1.1 is usual",
            ),
            (
                self.repetition_context_size >= 1,
                f"repetition_context_size={self.repetition_context_size} is below 1 token; raise it, or leave out "
                "repetition_penalty",
            ),
            (0 <= self.seed < SEEDS, f"seed={self.seed} is outside 0 to 2^64 - 1; choose a seed in this range"),
            (self.max_tokens >= 1, f"max_tokens={self.max_tokens} is below 1; ask for at least one token"),
            (
                isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop),
                f"stop={self.stop!r} has an empty or wrong entry; every stop string needs at least one character",
            ),
        ):
            if not ok:
                raise HeadraceError(problem)

    def sampler(self, vocabulary: int | None = None) -> Sampler:
        """Return mlx-lm's sampler: log-probabilities [batch, vocabulary] to token ids [batch].

        mlx-lm raises an error for a `top_k` that is not below the vocabulary; with `vocabulary` such a `top_k` keeps every
        token.
        """
        from mlx_lm.sample_utils import make_sampler

        top_k = self.top_k if vocabulary is None or self.top_k < vocabulary else 0
        return make_sampler(temp=self.temperature, top_p=self.top_p, min_p=self.min_p, top_k=top_k)

    def logits_processors(self) -> list[LogitsProcessor]:
        """Return mlx-lm's logits processors; empty without a repetition penalty."""
        from mlx_lm.sample_utils import make_logits_processors

        return make_logits_processors(
            repetition_penalty=self.repetition_penalty, repetition_context_size=self.repetition_context_size
        )

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
