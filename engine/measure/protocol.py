"""Protocol: how a measurement is taken; texts and metric are not part of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import HeadraceError, JudgeError, did_you_mean

PAGE_CACHE = ("as_is", "cold", "warm")
REAL, RESTORED = PREFILL = ("real", "restored")
UNTIMED = "untimed"  # what a measurement with `restored` says of prompts that it computed to keep them
PREFILLED, STEADY, COLD = STATES = ("prefilled", "steady", "cold")


@dataclass(frozen=True)
class Protocol:
    """Rules of one measurement. Raises `HeadraceError` for a wrong value.

    `warm_up_tokens` tokens are decoded first, outside the clock. The clock then covers the first `timed_tokens` decoded
    tokens of the evaluation texts, in order (None: all). With `score` the rest of the texts follows without a clock, and
    perplexity covers all of them; without it the measurement ends there and has no perplexity. `page_cache` is applied
    before the engine is loaded (see `prepare_page_cache`). `prefill`: `real` computes every prompt against the clock;
    `restored` reads the state after it where it was kept, and otherwise computes it without the clock and keeps it (see
    `engine.prompt_cache`).

    `state` is what the experts' cache holds when the clock starts for a text: what its prompt left there (`prefilled`), what
    a long generation that ends with it leaves (`steady`), or nothing but pinned experts (`cold`).
    """

    warm_up_tokens: int = 8
    timed_tokens: int | None = None
    page_cache: str = "as_is"
    score: bool = True
    prefill: str = REAL
    state: str = PREFILLED

    def __post_init__(self) -> None:
        timed = () if self.timed_tokens is None else (("timed_tokens", self.timed_tokens, 1),)
        for name, value, least in (("warm_up_tokens", self.warm_up_tokens, 0), *timed):
            if type(value) is not int or value < least:
                raise HeadraceError(f"{name}={value!r} is not an integer of at least {least}; give one")
        if self.page_cache not in PAGE_CACHE:
            raise HeadraceError(f"page_cache={self.page_cache!r} is unknown; choose one of: {', '.join(PAGE_CACHE)}")
        if self.prefill not in PREFILL:
            raise HeadraceError(f"prefill={self.prefill!r} is unknown; choose one of: {', '.join(PREFILL)}")
        if self.state not in STATES:
            raise HeadraceError(f"state={self.state!r} is unknown; choose one of: {', '.join(STATES)}")
        if type(self.score) is not bool:
            raise HeadraceError(f"score={self.score!r} is neither true nor false; give true or false")

    def timed_of(self, most: int) -> int:
        """Return the tokens to time, of the `most` in all continuations. Raises `JudgeError` for more than these."""
        if (self.timed_tokens or 0) > most:
            raise JudgeError(
                f"timed_tokens={self.timed_tokens} is above the {most} tokens of all continuations; "
                "lower it, or leave it unset to time them all"
            )
        return self.timed_tokens or most

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Protocol:
        """Return the protocol with these names and values. Raises `HeadraceError` for an unknown name or a wrong value."""
        names = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise HeadraceError(f"{name} is not a field of the measuring protocol; {did_you_mean(name, names)}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return name -> value, JSON-ready."""
        return dataclasses.asdict(self)
