"""Derivation: the search space that follows from a checkpoint's sizes and a machine, and why each other knob is left out.

`derive` is a function of its arguments alone. Every bound is possible: with each combination of the knobs that it offers,
both ends of `cache_gb` hold one token's experts, and the engine's own predicted peak is within the limit. Every knob has an
effect wherever its conditions hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine import KnobError, Knobs
from engine.knobs import BACKENDS, DEFAULTS
from harness import ConfigError

from .reasons import NEVER, OF_ONE_BACKEND, not_packed, on_cpu
from .room import Room

HALF_LIFE = {"type": "float", "low": 1, "high": 256, "log": True}  # tokens
DEEPEST = 4  # layers that prefetch looks ahead
BLOCKS = 6  # sizes of blocks, each twice the one before
LEAST_BLOCK_KIB, MOST_BLOCK_KIB = 4, 1 << 15
LEAST_THREADS, MOST_THREADS = 8, 32
HOT = {"type": "float", "low": 0.05, "high": 0.75, "step": 0.05}
WIDE = 1.5  # ratio of the ends of a range of cache_gb that is worth a search
BETTER = 1.1  # factor by which a poorer choice must widen that range to be taken
SHARES = (0.1, 0.02, 0.0)  # of the room for the cache that one value of another knob may take; the first that fits


@dataclass(frozen=True)
class Sizes:
    """What the space follows from, of a checkpoint. `footprint` is the engine's; figures that it lacks count as unknown."""

    name: str
    footprint: Callable[[Knobs], Any]
    largest_read_kib: float | None = None  # longest contiguous read of an expert; None: unknown
    no_window: str = ""  # why the model cannot have a sync_window above 1; empty: it can
    no_prefetch: str = ""
    widest: float = 2.0  # largest prefetch_width


@dataclass(frozen=True)
class Host:
    """What the space follows from, of a machine."""

    limit_gb: float
    cores: int
    backend: str | None = None  # cpu, metal or cuda; None: not known
    no_direct: str = ""  # why the checkpoint's disk has no direct reads; empty: it has
    named: str = "this machine"


@dataclass(frozen=True)
class Derived:
    """A space as in YAML, and the reason for each knob that is left out. `decided`: those that this checkpoint or machine
    decided, which a study prints."""

    space: dict[str, Any]
    left_out: dict[str, str]
    decided: tuple[str, ...]

    def lines(self) -> list[str]:
        """The reasons to print, knobs with the same reason together."""
        by_reason: dict[str, list[str]] = {}
        for name in self.decided:
            by_reason.setdefault(self.left_out[name], []).append(name)
        return [f"left out: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def derive(sizes: Sizes, host: Host, fixed: Mapping[str, Any]) -> Derived:
    """The space of a checkpoint on a machine. `fixed` has the knobs outside the space, which are not derived.

    Raises `ConfigError` for a model that does not fit, or in which nothing can be searched.
    """
    room = Room(sizes.footprint, host.limit_gb, fixed)
    model = room.sizes({})
    if not model.one_token_gb or not model.all_experts_gb:
        raise ConfigError(
            f"search_space=auto needs sizes, and the engine predicts none for {sizes.name}; give search_space=FILE"
        )
    if model.one_token_gb >= model.all_experts_gb:
        raise ConfigError(
            f"search_space=auto: {sizes.name} uses all its experts for every token, so there is nothing to cache and to "
            "search; run it with python -m engine"
        )
    left_out = dict(NEVER)
    other = _reading(sizes, host, model, left_out) | _ahead(sizes, host, model, left_out) | _of_backend(host, left_out)
    space = _fitting(sizes, room, model, other, left_out)
    if space is None:
        raise ConfigError(_too_large(sizes, host, model, room))
    left_out = {name: reason for name, reason in left_out.items() if name not in space and name not in fixed}
    usual = {*OF_ONE_BACKEND.values(), *NEVER.values()}
    return Derived(space, left_out, tuple(name for name, reason in left_out.items() if reason not in usual))


def _reading(sizes: Sizes, host: Host, model: Any, left_out: dict[str, str]) -> dict[str, Any]:
    """Eviction, blocks, threads and the way of reading."""
    space: dict[str, Any] = {"evict_half_life": dict(HALF_LIFE)}
    blocks = _blocks(sizes.largest_read_kib)
    if len(blocks) > 1:
        space["read_block_kib"] = {"type": "ordinal", "values": blocks}
    else:
        left_out["read_block_kib"] = f"the longest read of an expert has {sizes.largest_read_kib:.3g} KiB: one block"
    most = max(LEAST_THREADS, min(MOST_THREADS, 2 * host.cores))
    space["read_threads"] = {"type": "ordinal", "values": [n for n in (1, 2, 4, 8, 16, 32) if n <= most]}
    if host.no_direct:
        left_out["io_mode"] = host.no_direct
    else:
        space["io_mode"] = {"type": "choice", "values": ["buffered", "direct"]}
    return space


def _blocks(largest_kib: float | None) -> list[int]:
    """Sizes of blocks up to the first that holds the longest read."""
    largest = min(largest_kib or 4096, MOST_BLOCK_KIB)
    sizes = [LEAST_BLOCK_KIB]
    while sizes[-1] < largest:
        sizes.append(2 * sizes[-1])
    return sizes[-BLOCKS:]


def _ahead(sizes: Sizes, host: Host, model: Any, left_out: dict[str, str]) -> dict[str, Any]:
    """Windows where a sync costs, and prefetch, which needs each layer's choice."""
    layers = getattr(model, "moe_layers", None)
    space: dict[str, Any] = {}
    if host.backend in (None, "cpu"):
        left_out["sync_window"] = on_cpu(host.backend)
    elif sizes.no_window or layers == 1:
        left_out["sync_window"] = sizes.no_window or "the model has one layer of experts"
    else:
        windows = sorted({1, 4, (layers or 16) // 4, (layers or 16) // 2} - {0})
        space["sync_window"] = {"type": "ordinal", "values": [*(n for n in windows if n < (layers or 16)), "all"]}
    if sizes.no_prefetch or layers == 1:
        why = sizes.no_prefetch or "the model has one layer of experts"
        return space | _without(("prefetch", "prefetch_depth", "prefetch_width"), why, left_out)
    when = {"when": {"sync_window": 1}} if space else {}
    space["prefetch"] = {"type": "choice", "values": ["off", "stale_gate"], **when}
    guesses = {"when": {"prefetch": "stale_gate"}}
    deepest = min(DEEPEST, (layers or DEEPEST) - 1)
    if deepest > 1:
        space["prefetch_depth"] = {"type": "int", "low": 1, "high": deepest, **guesses}
    else:
        left_out["prefetch_depth"] = "the model has two layers of experts: there is one to look ahead to"
    top_k = getattr(model, "top_k", None) or 4
    widest = min(sizes.widest, getattr(model, "experts", 2 * top_k) / (layers or 1) / top_k)
    step = 0.25 if top_k >= 4 else 0.5 if top_k > 1 else 1.0
    steps = int((widest - 1) / step + 1e-9)
    if steps:
        space["prefetch_width"] = {"type": "float", "low": 1, "high": 1 + steps * step, "step": step, **guesses}
    else:
        left_out["prefetch_width"] = f"the routers of {sizes.name} cannot rank more than its own {top_k} experts"
    return space


def _of_backend(host: Host, left_out: dict[str, str]) -> dict[str, Any]:
    """The switches of this machine's backend of MLX."""
    space: dict[str, Any] = {}
    for name, own in BACKENDS.items():
        if name in NEVER:
            continue
        if own == host.backend:
            space[name] = {"type": "choice", "values": [DEFAULTS[name], not DEFAULTS[name]]}
        else:
            left_out[name] = OF_ONE_BACKEND[own]
    return space


def _without(names: tuple[str, ...], why: str, left_out: dict[str, str]) -> dict[str, Any]:
    left_out.update(dict.fromkeys(names, why))
    return {}


def _fitting(
    sizes: Sizes, room: Room, model: Any, other: Mapping[str, Any], left_out: dict[str, str]
) -> dict[str, Any] | None:
    """The space `other` with the cache and widths, without values that take too much of the room for the cache.

    The richest choice that leaves the cache a range of `WIDE`, else the one with the widest range; None if none fits. The
    highest level of a store stays if it fits at all.
    """
    best, widest, reasons = None, 0.0, dict[str, str]()
    for number, (widths, why) in enumerate(_widths(sizes, model)):
        if number > 1 and best is not None:  # the highest level stays if it fits at all
            break
        whole = {name: entry for name, entry in {**other, **widths}.items() if name not in room.fixed}
        for share in SHARES:
            space, trimmed = room.trimmed(whole, share)
            cache = room.cache(space)
            if cache is None or cache["high"] / cache["low"] <= widest * BETTER:
                continue
            widest, reasons = cache["high"] / cache["low"], why | trimmed
            best = space if "cache_gb" in room.fixed else {"cache_gb": cache, **space}
            if widest >= WIDE:
                break
        if widest >= WIDE:
            break
    left_out.update(reasons)
    return best


def _widths(sizes: Sizes, model: Any) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """The widths to offer, the richest choice first, each with reasons for what it leaves out.

    A store has its levels, in one width, or in two of which the colder is the lowest level. If its highest level does not
    fit, the lower ones may.
    """
    levels = tuple(getattr(model, "levels", ()) or ())
    names = ("expert_bits", "cold_bits", "hot_share")
    if not levels:
        return [({}, dict.fromkeys(names, not_packed(sizes.name, getattr(model, "expert_bits", None))))]
    *lower, top = levels
    one: dict[str, Any] = {"expert_bits": {"type": "ordinal", "values": [*lower, None]}}
    hot = {"expert_bits": [*lower[1:], None]}
    two: dict[str, Any] = {
        "cold_bits": {"type": "ordinal", "values": [lower[0], None], "when": hot},
        "hot_share": {**HOT, "when": {"cold_bits": [lower[0]]}},
    }
    what = "does not fit: one token needs slots of both widths"
    found = [({**one, **two}, {}), (one, dict.fromkeys(names[1:], what))]
    for number in range(len(lower), 0, -1):
        kept = lower[:number]
        entry = {"type": "ordinal", "values": kept} if number > 1 else kept[0]
        found.append(({"expert_bits": entry}, dict.fromkeys(names[1:], f"{top} bits do not fit")))
    return found


def _too_large(sizes: Sizes, host: Host, model: Any, room: Room) -> str:
    """The line for a model that does not fit: the need, the limit and the remedy."""
    token = model.one_token_gb
    need = room.sizes({"cache_gb": token}).predicted_peak_gb
    line = (
        f"{sizes.name} does not fit into {host.limit_gb:.3g} GB, the limit of {host.named}: it needs {need:.3g} GB or more, "
        f"{need - token:.3g} of them besides the experts and {token:.3g} for one token's experts; "
    )
    for bits in (8, 4) if "resident_bits" not in room.fixed else ():
        with contextlib.suppress(KnobError):  # no weight has more bits
            lighter = room.sizes({"cache_gb": token, "resident_bits": bits}).predicted_peak_gb
            if lighter <= host.limit_gb:
                return f"{line}knobs.resident_bits={bits} lowers that to {lighter:.3g} GB"
    return line + "use a smaller model, a store with fewer bits (python -m engine pack), or a machine with more memory"
