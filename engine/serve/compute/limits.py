"""Limits of a context: the model's positions, the user's option, and the memory for keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from engine.engine import Engine
from engine.errors import HeadraceError
from engine.knobs import GB
from engine.model.buffer_cache import buffer_cache_bytes
from engine.plan.footprint import weights_of
from engine.plan.memory.process import process_bytes
from engine.serve.errors import RequestError
from engine.serve.options import ServeOptions
from engine.system.memory import memory_bytes

COPIES = 2  # mlx-lm holds a request's keys and values twice while it merges or extracts them


@dataclass(frozen=True)
class ContextLimit:
    """The most tokens of a prompt and its answer, and what sets this limit. `kv_bytes`: of one token."""

    tokens: int | None
    source: str
    kv_bytes: float

    def fit(self, prompt: int, wanted: int | None, default: int) -> int:
        """The tokens that a request may generate: what it wants, or `default` cut to what fits.

        Raises `RequestError` with the numbers if it does not fit.
        """
        if self.tokens is None:
            return wanted or default
        room = self.tokens - prompt
        if room < 1 or (wanted is not None and wanted > room):
            asked = f"{prompt} tokens of the prompt" + (f" + max_tokens {wanted} = {prompt + wanted}" if wanted else "")
            remedy = f"shorten the prompt, or set max_tokens to at most {room}" if room >= 1 else "shorten the prompt"
            raise RequestError(
                400,
                f"this request is too long: {asked}, and the limit is {self.tokens} ({self.source}); {remedy}",
                param=None if room < 1 else "max_tokens",
                code="context_length_exceeded",
            )
        return wanted or min(default, room)


def context_limit(engine: Engine, options: ServeOptions) -> ContextLimit:
    """The limit of one request while `options.parallel` compute. Computes one token, which also warms up the model.

    Raises `HeadraceError` if no memory is left for keys and values, or if the option is above the model's limit.
    """
    per_token, fixed = kv_bytes(engine.model)
    limits = []
    if engine.context_limit is not None:
        limits.append((engine.context_limit, "the model's max_position_embeddings"))
    if options.context is not None:
        if limits and options.context > limits[0][0]:
            raise HeadraceError(f"--context {options.context} is above the model's {limits[0][0]} positions; lower it")
        limits.append((options.context, "--context"))
    weights = weights_of(engine.checkpoint, engine.knobs).total_gb
    other = process_bytes() + buffer_cache_bytes()
    free = memory_bytes() - other - weights * GB - options.prompt_cache_gb * GB - COPIES * fixed * options.parallel
    if per_token:
        fits = int(free / (COPIES * per_token * options.parallel))
        if fits < 1:
            raise HeadraceError(
                f"no memory is left for keys and values: {weights:.4g} GB of weights and {options.prompt_cache_gb:g} GB of "
                "prompt cache take it all; lower cache_gb or --prompt-cache-gb"
            )
        limits.append((fits, f"memory for keys and values, {per_token / 1e3:.3g} kB a token"))
    tokens, source = min(limits, default=(None, "none"))
    return ContextLimit(tokens, source, per_token)


def kv_bytes(model: Any) -> tuple[float, float]:
    """Bytes of keys and values that grow with each token, and those of a fixed size, of one request."""
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=caches))
    growing = fixed = 0.0
    for cache in _flat(caches):
        keys = getattr(cache, "keys", None)
        allocated = keys.shape[2] if isinstance(keys, mx.array) and keys.ndim == 4 else 0
        if not allocated:
            fixed += cache.nbytes
        elif most := getattr(cache, "max_size", None):
            fixed += cache.nbytes / allocated * most
        else:
            growing += cache.nbytes / allocated
    return growing, fixed


def _flat(caches: Any) -> list[Any]:
    return [inner for cache in caches for inner in (_flat(cache.caches) if hasattr(cache, "caches") else [cache])]
