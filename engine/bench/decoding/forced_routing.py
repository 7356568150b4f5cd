"""Forced routing of a recorded trace: an engine that decodes with the trace's experts (`engine.routing.forced`)."""

from __future__ import annotations

import time

import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import Rehearsal
from engine.engine import Engine
from engine.errors import HeadraceError
from engine.routing.forced import force, rehearsed
from engine.routing.read import Trace
from engine.stats import Stats

WARM_UP = 16  # tokens before the clock starts


class ForcedRouting:
    """An engine whose routing comes from a trace, or if that is None from the made-up one of a rehearsal. If the trace has
    fewer ranks than the model, the missing ones are the last ranks of the layer half the model away, for the same token. If
    it has another number of layers, each layer takes those of the recorded one at the same depth.

    `recall`: share of the experts that a rejected pass predicts, for the first pass of a window and for later ones; None:
    all of them. `mapped` says what was changed to fit the model. Raises `HeadraceError` for a trace that does not fit.
    """

    def __init__(
        self, engine: Engine, trace: Trace | None, recall: list[float] | None, rehearsal: Rehearsal | None = None
    ) -> None:
        self._engine = engine
        self.ids, self.mapped = forced_ids(engine.checkpoint, trace, rehearsal)
        self.forced = force(engine, self.ids, recall)

    def at(self, first: int) -> None:
        """Force the trace's tokens from number `first` on in the next passes; after its end the trace repeats."""
        self.forced.position = first

    def decode(self, tokens: int, *, warm_up: int = WARM_UP, held: bool = False) -> tuple[float, Stats]:
        """Decode `warm_up` tokens, then `tokens` tokens once. Returns the seconds and the counters of that time.

        `held`: with the experts of one token, which are cached after the first one.
        """
        engine, most = self._engine, len(self.ids) - warm_up
        cache = make_prompt_cache(engine.model)
        random = np.random.default_rng(0).integers(0, engine.checkpoint.built.vocabulary, len(self.ids))
        begin = 0.0
        self.forced.position, self.forced.held = 0, held
        for token in range(warm_up + min(tokens, most)):
            if token == warm_up:
                engine.stats.reset()
                begin = time.perf_counter()
            engine.forward.logits([int(random[token])], cache)
        self.forced.held = False
        return time.perf_counter() - begin, engine.stats.copy()


def forced_ids(source: Checkpoint, trace: Trace | None, rehearsal: Rehearsal | None) -> tuple[np.ndarray, str]:
    """The experts that the model is forced to use, uint32 [tokens, layers, top-k]: the trace's, or without one those of the
    rehearsal. Also what was changed to fit, in words. Raises `HeadraceError` for a trace that does not fit."""
    if trace is not None:
        return fitted(trace, source)
    assert rehearsal is not None
    return rehearsed(rehearsal, source)[0], ""


def fitted(trace: Trace, source: Checkpoint) -> tuple[np.ndarray, str]:
    """The trace's experts for a model, uint32 [tokens, layers, top-k], and what was changed to fit, in words."""
    layers, top_k = len(source.layers), source.top_k
    experts = min(layer.experts for layer in source.layers)
    recorded = trace.experts[trace.prefilled :] if (trace.experts < 0).any() else trace.experts
    _, depth, ranks = recorded.shape
    if recorded.max() >= experts or ranks < top_k / 2:
        raise HeadraceError(
            f"trace {trace.path} ({trace.shape}) does not fit {source.name} ({layers} layers of "
            f"{experts} experts, top-{top_k}); give one with no more experts and at least half of top-k"
        )
    changes = []
    if depth != layers:
        changes.append(f"{depth} recorded layers for {layers}")
    if ranks != top_k:
        changes.append(f"{ranks} recorded experts of a token for {top_k}")
    if (used := int(recorded.max()) + 1) < experts:
        changes.append(f"only {used} of {experts} experts are used")
    return completed(recorded[:, np.arange(layers) * depth // layers], top_k), ", ".join(changes)


def completed(recorded: np.ndarray, top_k: int) -> np.ndarray:
    """uint32 [tokens, layers, top-k]: the trace's first ranks, followed by another layer's last ones if it has too few."""
    tokens, layers, ranks = recorded.shape
    if ranks >= top_k:
        return recorded[..., :top_k].astype(np.uint32)
    out = np.concatenate([recorded, np.full((tokens, layers, top_k - ranks), -1)], axis=-1)
    others = np.roll(recorded, layers // 2, axis=1)[..., ::-1]
    for token in range(tokens):
        for layer in range(layers):
            new = [e for e in others[token, layer].tolist() if e not in recorded[token, layer]]
            spare = [e for e in range(top_k * 2) if e not in recorded[token, layer] and e not in new]
            out[token, layer, ranks:] = (new + spare)[: top_k - ranks]
    return out.astype(np.uint32)
