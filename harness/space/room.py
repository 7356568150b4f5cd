"""Room: the range of `cache_gb` that is possible with every setting of the other knobs, and values that take too much of it.

A peak counts the cache, all other weights, the context, a prefill chunk, and experts on their way into slots. The last part
depends on the knobs: windows and prefetch keep experts of later layers in flight, and each thread has a buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine import Knobs
from engine.effective import effective

from .parse import rounded

STEPS = 8  # of the search for the largest cache
LISTS = ("sync_window", "read_block_kib", "read_threads")  # ordered values, of which the last take most memory
RANGES = ("prefetch_depth", "prefetch_width")


@dataclass(frozen=True)
class Room:
    """A limit of memory and what settings take of it, by the engine's own prediction. `fixed`: knobs outside the space."""

    footprint: Callable[[Knobs], Any]
    limit_gb: float
    fixed: Mapping[str, Any]

    def sizes(self, values: Mapping[str, Any]) -> Any:
        """The footprint of a setting."""
        return self.footprint(Knobs.from_mapping(effective({**self.fixed, **values})))

    def cache(self, space: Mapping[str, Any]) -> dict[str, Any] | None:
        """The range of `cache_gb` that is possible with every combination of `space`; None if there is none.

        The rest of a peak depends on the cache itself: experts in flight, and the prefill chunk that `auto` takes.
        """
        settings = list(_extremes(space))
        low = self.one_token(settings)
        above = min(self.sizes({}).all_experts_gb, self._left(settings, low))  # with a larger cache more is in flight
        if above < low:
            return None
        high = above
        for _ in range(STEPS):
            if (most := self._left(settings, high)) >= high:
                break
            high = max(low, min(most, 0.999 * high))
        for _ in range(STEPS // 4):
            middle = (high + above) / 2
            high, above = (middle, above) if self._left(settings, middle) >= middle else (high, middle)
        return {"type": "float", "low": low, "high": max(low, rounded(high, up=False)), "log": True}

    def trimmed(self, space: Mapping[str, Any], share: float) -> tuple[dict[str, Any], dict[str, str]]:
        """`space` without values that alone take more than `share` of the room for the cache, and the reasons."""
        kept, reasons = dict(space), dict[str, str]()
        for name in (*LISTS, *RANGES):
            if name not in kept:
                continue
            values = _ends(kept[name]) if name in LISTS else _steps(kept[name])
            number = len(values)
            while number > 1 and (extra := self._extra(kept, name, values[number - 1])) > share * self._most(kept):
                number -= 1
                much = f"more than {share:.0%} of the room for it" if share else "and there is no room for it"
                reason = f"it takes {extra:.2g} GB beside the cache, {much}"
                reasons[name if number == 1 else f"{name}={values[number]}"] = reason
            if number < len(values):
                kept = _cut(kept, name, values[:number])
        return kept, reasons

    def one_token(self, settings: list[dict[str, Any]]) -> float:
        """The smallest cache that holds one token's experts in each setting, GB."""
        return rounded(max(self.sizes(s).one_token_gb for s in settings), up=True)

    def _left(self, settings: list[dict[str, Any]], cache_gb: float) -> float:
        """What is left for the cache if the rest of the peak is that of `cache_gb`."""
        peaks = (self.sizes({**s, "cache_gb": cache_gb}).predicted_peak_gb for s in settings)
        return self.limit_gb - (max(peaks) - cache_gb)

    def _most(self, space: Mapping[str, Any]) -> float:
        """What is left for the cache with the values that take least memory."""
        token = self.one_token(list(_widths(space)))
        return max(0.0, self._left([_least(space)], token))

    def _extra(self, space: Mapping[str, Any], name: str, value: Any) -> float:
        """What a value takes more than the least one of its knob."""
        token = self.one_token(list(_widths(space)))
        values = _least(space)
        if name.startswith("prefetch"):
            values = {**values, "prefetch": "stale_gate"}
            if name == "prefetch_width" and "prefetch_depth" in space:
                values["prefetch_depth"] = _ends(space["prefetch_depth"])[-1]
        if name.startswith("read"):
            values = {**values, **({"io_mode": "direct"} if "io_mode" in space else {})}
            if name == "read_threads" and "read_block_kib" in space:
                values["read_block_kib"] = _ends(space["read_block_kib"])[-1]
        least = {k: v for k, v in values.items() if k != "prefetch"} if name == "prefetch_depth" else values
        own, other = (self._left([s], token) for s in ({**values, name: value}, least))
        return other - own


def _extremes(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings at the ends of the knobs that take memory: each width, each way to look ahead, both ways to read."""
    values = {name: _ends(entry) for name, entry in space.items()}
    ahead: list[dict[str, Any]] = [{}, *({"sync_window": n} for n in values.get("sync_window", [])[-1:])]
    if "prefetch" in space:
        most: dict[str, Any] = {n: values[n][-1] for n in RANGES if n in values}
        ahead.append({"prefetch": "stale_gate", **most})
    largest: dict[str, Any] = {n: values[n][-1] for n in ("read_threads", "read_block_kib") if n in values}
    least = {n: values[n][0] for n in largest}
    reading = [least, {**largest, **({"io_mode": "direct"} if "io_mode" in space else {})}]
    for parts in itertools.product(_widths(space), ahead, reading):
        yield {name: value for part in parts for name, value in part.items() if value is not None}


def _widths(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The widths of a space: each one width, and each two with most and least of the wider."""
    bits = _ends(space["expert_bits"]) if "expert_bits" in space else [None]
    yield from ({} if one is None else {"expert_bits": one} for one in bits)
    for one, cold in itertools.product(bits, _ends(space["cold_bits"]) if "cold_bits" in space else []):
        if cold is not None and (one is None or cold < one):
            for share in _ends(space["hot_share"]):
                yield {"cold_bits": cold, "hot_share": share, **({} if one is None else {"expert_bits": one})}


def _least(space: Mapping[str, Any]) -> dict[str, Any]:
    """The values of threads and blocks that take least memory."""
    return {name: _ends(space[name])[0] for name in ("read_threads", "read_block_kib") if name in space}


def _ends(entry: Any) -> list[Any]:
    """The values of an entry, or the ends of its range."""
    if not isinstance(entry, Mapping):
        return [entry]
    return list(entry["values"]) if "values" in entry else [entry["low"], entry["high"]]


def _steps(entry: Mapping[str, Any]) -> list[Any]:
    """All values of a range with steps."""
    step = entry.get("step", 1)
    return [entry["low"] + n * step for n in range(round((entry["high"] - entry["low"]) / step) + 1)]


def _cut(space: Mapping[str, Any], name: str, values: list[Any]) -> dict[str, Any]:
    """The space with these values of a list or a range. One value alone is no choice: it becomes fixed where it is not the
    default, and conditions on it go."""
    cut = dict(space)
    if len(values) > 1:
        cut[name] = {**space[name], **({"values": values} if name in LISTS else {"high": values[-1]})}
        return cut
    del cut[name]
    if name != "sync_window":
        return cut if values[0] == Knobs().as_dict()[name] else {**cut, name: values[0]}
    return {n: _without(e, name) if isinstance(e, Mapping) else e for n, e in cut.items()}


def _without(entry: Mapping[str, Any], parent: str) -> dict[str, Any]:
    when = {knob: legal for knob, legal in entry.get("when", {}).items() if knob != parent}
    return {key: value for key, value in entry.items() if key != "when"} | ({"when": when} if when else {})
