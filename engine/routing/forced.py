"""Forced routing: computes with given experts instead of the router's choice, for models of random weights.

The routing of a model with random weights collapses. Forced experts do not depend on the hidden state, and a rejected pass
of `sync_window` would predict all of them. The recall of its predictions is therefore limited to shares measured on a
trained model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import Rehearsal
from engine.errors import HeadraceError, KnobError
from engine.model.switches import switches

from .synthetic import Locality, synthetic

TOKENS, PROFILE_TOKENS = 512, 256  # of a rehearsal's routing; the second part is what its routing profile sees


class ForcedRouting:
    """The forced experts of one model, whose switches are replaced. `ids`: uint32 [tokens, layers, top-k].

    Each pass takes the experts of the next tokens; after the end they repeat. `held`: every pass takes those of the same
    token, so that nothing is missing after the first pass. `recall`: share of the experts that a rejected pass predicts, for
    the first pass of a window and for later ones; None: all of them.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, ids: np.ndarray) -> None:
        self.ids = ids
        self.recall: Sequence[float] | None = None
        self.position = 0
        self.held = False
        self._token = 0
        self._on_device: list[mx.array] = []
        paths = [path for path, _ in switches(model, checkpoint)]
        modules = dict(model.named_modules())
        forced = [(path, _ForcedSwitch(modules[path], number, self)) for number, path in enumerate(paths)]
        model.update_modules(tree_unflatten(forced))

    def choice(self, layer: int, tokens: int) -> mx.array:
        """The experts of a layer for the last `tokens` tokens of the pass."""
        return self._on_device[layer][-tokens:]

    def begin_pass(self, tokens: int) -> None:
        """Force the experts of the next `tokens` tokens in the pass that starts."""
        self._token = self.position
        numbers = np.full(tokens, self.position) if self.held else np.arange(self.position, self.position + tokens)
        ids = self.ids[numbers % len(self.ids)]
        self._on_device = [mx.array(ids[:, layer]) for layer in range(ids.shape[1])]
        self.position += 0 if self.held else tokens

    def predicted(self, number: int, ids: np.ndarray, rejected: int) -> np.ndarray:
        """The prediction of a rejected pass: each expert stays with the probability `recall`; the others are replaced by
        choices of the layer for another, random token, because wrong predictions of a real model are often-used experts. A
        later pass with a higher recall keeps what an earlier one predicted."""
        if self.recall is None:
            return ids
        rng = np.random.default_rng((self._token, number))
        wrong = rng.random(ids.shape) >= self.recall[min(rejected, len(self.recall)) - 1]
        shown = np.array(ids)
        for other in rng.permutation(len(self.ids)):
            for rank in np.flatnonzero(wrong):
                stand_in = self.ids[other, number, rank]
                if stand_in not in ids and stand_in not in shown:
                    shown[rank], wrong[rank] = stand_in, False
            if not wrong.any():
                break
        return shown


class _ForcedSwitch(nn.Module):
    """A switch that gets the forced experts, no earlier than the router's own choice."""

    def __init__(self, inner: Any, layer: int, forced: ForcedRouting) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_forced", forced)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        tokens = indices.size // indices.shape[-1]
        return self._inner(x, _instead(indices, self._forced.choice(self._layer, tokens)))


@mx.compile
def _instead(indices: mx.array, forced: mx.array) -> mx.array:
    """`forced`, computed after `indices`."""
    return mx.where(indices < 1 << 30, mx.reshape(forced, indices.shape), indices).astype(indices.dtype)


def force(engine: Any, ids: np.ndarray, recall: Sequence[float] | None) -> ForcedRouting:
    """Let an `Engine` compute with the experts `ids`, from its next pass on. `recall`: see `ForcedRouting`. Raises
    `KnobError` with prefetch, which predicts the routers' choice."""
    if engine.knobs.prefetch != "off":
        raise KnobError(
            f"prefetch={engine.knobs.prefetch} predicts routers, but the routing of {engine.checkpoint.name} is forced; set "
            "prefetch=off"
        )
    if engine.forced is None:
        engine.forced = ForcedRouting(engine.model, engine.checkpoint, ids)
        engine.passes.before_pass = engine.forced.begin_pass
        if engine.windows is not None:
            engine.windows.prediction = engine.forced.predicted
    forced: ForcedRouting = engine.forced
    forced.ids, forced.recall, forced.position = ids, recall, 0
    return forced


def refuse_trace(forced: ForcedRouting | None, checkpoint: Checkpoint) -> None:
    """Raise `HeadraceError` if the routing is forced: a trace would show the routers' choice, which is not used."""
    if forced is not None:
        raise HeadraceError(f"the routing of {checkpoint.name} is forced, so no trace of it is recorded; use a real model")


def rehearsed(rehearsal: Rehearsal, checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """The synthetic routing of a rehearsal, uint32 [tokens, layers, top-k]: the experts that its engine computes with, and
    later ones for its routing profile."""
    experts = min(layer.experts for layer in checkpoint.layers)
    locality = Locality.from_mapping(rehearsal.routing)
    ids = synthetic(locality, TOKENS + PROFILE_TOKENS, len(checkpoint.layers), experts, checkpoint.top_k).astype(np.uint32)
    return ids[:TOKENS], ids[TOKENS:]
