"""Locality: the share of a token's experts that a cache misses, replayed through the engine's own slots.

A model with a trace replays it. Any other model replays synthetic routing in its own shape, once for each trace that there
is: a trace's parameters (`engine.routing.fitted`) are one possible world. How far the worlds differ is what is not known of
the model's locality. LAYERS layers at equal distances over the depth stand for all, since a layer's slots are its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.replay.replay import replay
from engine.replay.sizes import Sizes
from engine.routing.fitted import FITTED
from engine.routing.synthetic import synthetic
from engine.routing.traces.recording import Recording, read_recording

LAYERS, PROMPT, DECODED = 6, 128, 128
SHARE = 1 << 20  # bytes of an expert in a replay, of which only the slots matter
OTHER_TEXT_SD = 0.3  # two texts of kimi_mini: 0.26 to 0.54 apart at 10 to 62 % cached (docs/evidence/forecast-here.md)
WHOLE, EMPTY = np.array([1.0, 0.0]), np.array([0.0, 1.0])  # hit rate and share of layers that miss: all slots, and none


@dataclass(frozen=True)
class Worlds:
    """Possible routings of one model: those of traces of other models, or its own. `missed_sd`: of the logarithm of the
    bytes that another text of the same model misses."""

    experts: int
    top_k: int
    names: tuple[str, ...]
    recordings: tuple[Recording, ...]
    missed_sd: float = 0.0

    def missed(self, slots: Sequence[float]) -> np.ndarray:
        """The share of a token's experts that is missed with so many slots a layer, float64 [worlds, slots]."""
        return 1 - self._table(slots)[..., 0]

    def layers_missed(self, slots: Sequence[float]) -> np.ndarray:
        """The share of the layers with routed experts that miss one, of a token, float64 [worlds, slots]."""
        return self._table(slots)[..., 1]

    def prompt_share(self, tokens: int) -> float:
        """The share of a layer's experts that a pass over so many tokens uses, averaged over worlds and layers."""
        shares = []
        for recording in self.recordings:
            some = recording.experts[:tokens]
            used = [len(np.unique(some[:, n])) for n in range(some.shape[1])]
            share = float(np.mean(used)) / self.experts
            more = tokens / len(some)  # independent draws beyond the recording: an upper limit
            shares.append(1 - (1 - share) ** more)
        return float(np.mean(shares))

    def _table(self, slots: Sequence[float]) -> np.ndarray:
        """Hit rates and shares of layers that miss, float64 [worlds, slots, 2]."""
        return np.array([[self._at(recording, n) for n in slots] for recording in self.recordings])

    def _at(self, recording: Recording, slots: float) -> np.ndarray:
        """Between two whole numbers of slots, and below those of one token, figures are interpolated."""
        if slots >= self.experts:
            return WHOLE
        if slots < self.top_k:  # the engine needs a slot for each expert of a token; other engines do not
            share = max(0.0, slots) / self.top_k
            return (1 - share) * EMPTY + share * self._whole(recording, self.top_k)
        low = int(slots)
        rest = slots - low
        below = self._whole(recording, low)
        return below if not rest else below * (1 - rest) + rest * self._whole(recording, low + 1)

    def _whole(self, recording: Recording, slots: int) -> np.ndarray:
        return WHOLE if slots >= self.experts else np.array(_replayed(_Known(recording), self.experts, slots))


class _Known:
    """A recording by its identity, for a cache of results."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def __hash__(self) -> int:
        return id(self.recording)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and other.recording is self.recording


@functools.lru_cache(maxsize=4096)
def _replayed(known: _Known, experts: int, slots: int) -> tuple[float, float]:
    """Hit rate, and the share of layers that miss an expert."""
    _, layers, top_k = known.recording.experts.shape
    sizes = Sizes(layers, experts, top_k, SHARE)
    found = replay(known.recording, sizes, Knobs(cache_gb=layers * slots * SHARE / GB))
    assert found.hit_rate is not None
    return found.hit_rate, float(found.by_token["layers_missed"].mean()) / layers


@functools.lru_cache(maxsize=64)
def worlds_of(experts: int, top_k: int) -> Worlds:
    """The worlds of a model without a trace."""
    if top_k >= experts:
        raise HeadraceError(f"a model that uses {top_k} of {experts} experts has nothing to stream; give another model")
    made = [
        Recording.made_up(synthetic(locality, PROMPT + DECODED, LAYERS, experts, top_k), PROMPT, f"locality of {name}")
        for name, locality in FITTED.items()
    ]
    return Worlds(experts, top_k, tuple(FITTED), tuple(made))


def own_world(trace: Path, layers: int, experts: int, top_k: int, missed_sd: float = OTHER_TEXT_SD) -> Worlds:
    """The one world of a model with a trace, of other texts than those to come unless `missed_sd` is 0. Raises
    `HeadraceError` for a trace that does not fit the model."""
    recording = read_recording(trace)
    found = recording.experts.shape
    if found[1:] != (layers, top_k) or recording.experts.max(initial=-1) >= experts:
        raise HeadraceError(
            f"trace {trace} ({recording.shape}) does not fit the model, which has {layers} layers of {experts} experts, "
            f"top-{top_k}; give a trace of this model, or leave --trace out"
        )
    return Worlds(experts, top_k, (str(trace.name),), (recording,), missed_sd)
