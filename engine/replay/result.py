"""Result: the figures of a replay, in total and for each decoded token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COUNTS = ("hits", "misses", "reads", "bytes_read", "layers_missed", "prefetch_issued", "prefetch_useful", "quantized")


@dataclass(frozen=True)
class ReplayResult:
    """What the decoded tokens of a replay miss and read; the names are those of `Measurement`.

    `by_token` has an int64 array [tokens] for each of `COUNTS`; `quantized` are the experts that are quantized again. Misses
    of a setting with prefetch are those without a slot. `exact`: the engine counts the same, to the last unit; `why_not`
    gives the reasons if not. With prefetch, a read that is dropped before it begins, since its slot is taken, is counted
    here and not by the engine, whose `bytes_read` may then be lower by at most `prefetch_wasted_bytes`.
    """

    by_token: Mapping[str, np.ndarray] = field(repr=False)
    slots: int
    experts: int  # of all layers
    prefetch_wasted_bytes: int
    why_not: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return not self.why_not

    @property
    def tokens(self) -> int:
        """Decoded tokens that the figures cover."""
        return len(self.by_token["misses"])

    @property
    def misses(self) -> int:
        return self._total("misses")

    @property
    def reads(self) -> int:
        return self._total("reads")

    @property
    def bytes_read(self) -> int:
        return self._total("bytes_read")

    @property
    def prefetch_issued(self) -> int:
        return self._total("prefetch_issued")

    @property
    def hit_rate(self) -> float | None:
        """Share of the requested experts that have a slot; None without requests."""
        requests = self._total("hits") + self.misses
        return self._total("hits") / requests if requests else None

    def as_dict(self) -> dict[str, Any]:
        """The totals by name, JSON-ready."""
        return {
            "exact": self.exact, "why_not": list(self.why_not), "decode_tokens": self.tokens,
            **{name: self._total(name) for name in COUNTS}, "hit_rate": self.hit_rate,
            "bytes_per_token": self.bytes_read / self.tokens if self.tokens else None,
            "layers_missed_per_token": self._total("layers_missed") / self.tokens if self.tokens else None,
            "prefetch_wasted_bytes": self.prefetch_wasted_bytes, "slots": self.slots,
            "cached_share": self.slots / self.experts,
        }  # fmt: skip

    def _total(self, name: str) -> int:
        return int(self.by_token[name].sum())
