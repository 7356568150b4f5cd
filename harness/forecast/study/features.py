"""Features: what a token of a setting reads and waits for, by a replay through the engine's own slots.

A replay takes 10 to 500 ms, so each setting is replayed once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.knobs import GB, Knobs
from engine.replay.replay import replay
from engine.replay.sizes import ReadBank, banks_of
from harness.forecast.interval import spread

from .fit import Features
from .routing import Routing, narrowed, profile_of


@dataclass
class Arithmetic:
    """The features of settings on a disk of `disk_gbps`, unless a setting limits its reads. `known`: by `key`."""

    routing: Routing
    disk_gbps: float
    known: dict[str, Features] = field(default_factory=dict)

    def features(self, values: Mapping[str, Any]) -> Features:
        """The features of a setting. Raises `HeadraceError` for one that cannot run or cannot be replayed."""
        knobs = Knobs.from_mapping(values)
        if (name := key(knobs)) not in self.known:
            self.known[name] = self._features(knobs)
        return self.known[name]

    def _features(self, knobs: Knobs) -> Features:
        share = self.routing.share
        model = self.routing.model.with_top_k(knobs.top_k)
        few = knobs if knobs.cache_gb is None else dataclasses.replace(knobs, cache_gb=knobs.cache_gb * share)
        layers, experts = len(model.layers), max(layer.experts for layer in model.layers)
        table = []
        for recording in self.routing.recordings:
            of_k = narrowed(recording, model.top_k)
            profile = self.routing.profile or profile_of(of_k, layers, experts)
            banks = banks_of(model, few, lambda profile=profile: profile)  # type: ignore[misc]
            if all(bank.slots >= len(bank.members) for bank in banks):
                return Features(two_widths=_two_widths(banks, layers))
            found = replay(of_k, model, few, profile=profile)
            read, missed, quantized = (
                float(found.by_token[name][-self.routing.counted :].mean()) / share
                for name in ("bytes_read", "layers_missed", "quantized")
            )
            streamed = len({bank.layer for bank in banks if bank.slots < len(bank.members)}) / layers
            table.append([read, streamed, _two_widths(banks, layers), missed, quantized])
        read, streamed, two_widths, missed, quantized = np.mean(table, axis=0).tolist()
        reads = [row[0] for row in table]
        io_ms = read / GB / (knobs.ssd_gbps or self.disk_gbps) * 1000
        return Features(io_ms, streamed, two_widths, missed, quantized, spread(reads) if all(reads) else 0.0)


def key(knobs: Knobs) -> str:
    """A short name of a setting."""
    return hashlib.sha256(repr(sorted(knobs.as_dict().items())).encode()).hexdigest()[:16]


def _two_widths(banks: list[ReadBank], layers: int) -> float:
    numbers = [bank.layer for bank in banks]
    return len({n for n in numbers if numbers.count(n) > 1}) / layers
