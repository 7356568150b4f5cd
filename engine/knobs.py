"""Knobs: all that may be set on the streaming engine, and nothing else.

The names are the same in Python, in YAML, in the Parquet columns and on the plots. A knob is *lossless* if it can change
speed and memory but not one bit of the logits. Of the lossy ones some decide by what is cached at the moment: with those
every lossless knob moves quality too, so that quality measured with one cache says nothing of another. A value that could
have no effect (a streaming knob while everything is resident, a `hot_share` without `cold_bits`) is refused instead of
ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import numpy as np

from engine import needs
from engine.errors import KnobError, did_you_mean
from engine.needs import Need

IO_MODES = ("buffered", "direct")
PREFETCH = ("off", "stale_gate")
BITS = (2, 3, 4, 5, 6, 8, 16)
GB = 1_000_000_000
HOT_SHARE = 0.25  # if only cold_bits is set
WORDS = {"sync_window": {"all": 0, "auto": -1}}  # values that have a name
# Knobs, and values KNOB=VALUE, that earlier versions had: why each was removed, and what to use instead.
REMOVED: dict[str, str] = {
    "prefetch=previous_token": "it took away 5 % of kimi_mini's misses, stale_gate 56 %; use prefetch=stale_gate",
    "prefetch_cap_mb": "a cap of 0.1 MB took away 12 % of kimi_mini's misses, no cap 56 %; use prefetch_width",
    "bits_by": "plans by layer or projection were within the range of random plans; use hot_share, which goes by expert",
    "gate_exponent": "gate weights added nothing to frequency; use freq_exponent",
    "error_exponent": "errors differ by a few percent between experts and told next to nothing; use freq_exponent",
    "cold_lowbit": "cache_prior saved more reads for less loss; use cache_prior",
    "lowbit_share": "it served cold_lowbit, and cache_prior saved more reads for less loss; use cache_prior",
}


def removed(name: str, value: Any = None) -> str | None:
    """The line that refuses a knob of an earlier version, or its value; None for any other."""
    if name in REMOVED:
        return f"knob {name} was removed: {REMOVED[name]}"
    why = REMOVED.get(f"{name}={value}")
    return None if why is None else f"knob value {name}={value} was removed: {why}"


def knob(
    default: Any, text: str, *, unit: str = "", lossless: bool = True, by_cache: bool = False, needs: tuple[Need, ...] = ()
) -> Any:
    """A dataclass field that carries what the generated tables and `--help` say of the knob. `by_cache`: what it does to the
    logits depends on what is cached; `needs`: what other knobs must be for it to have an effect."""
    said = {"lossless": lossless, "text": text, "unit": unit, "by_cache": by_cache, "needs": needs}
    return dataclasses.field(default=default, metadata=said)


@dataclass(frozen=True)
class Knobs:
    """The settings of one run. `Knobs()` keeps everything resident and changes no weight: the reference.

    Raises `KnobError` for a value outside its range or one that cannot have an effect.
    """

    # fmt: off
    cache_gb: float | None = knob(
        None, "memory for routed experts, 10^9 bytes; unset: every expert resident, nothing streamed", unit="GB")
    evict_half_life: float = knob(
        16.0, "half-life of an expert's use count, tokens; towards 0 it is LRU, towards infinity LFU", unit="tokens",
        needs=(needs.MISSES,))
    cache_layer_shape: float = knob(
        0.0, "how much more cache the first layers get than the last ones; 0: all alike, below 0: less",
        needs=(needs.MISSES,))
    pinned_share: float = knob(
        0.0, "share of the slots that hold each layer's most used experts for good, on a calibration text",
        needs=(needs.MISSES,))
    prefetch: str = knob(
        "off",
        "whom to believe on what comes next: off, stale_gate (the next routers on this layer's input)",
        needs=(needs.MISSES, needs.NO_WINDOW))
    prefetch_depth: int = knob(
        1, "how many layers ahead prefetch looks; 0: at the layer itself, a control that reads nothing", unit="layers",
        needs=(needs.PREFETCHES,))
    prefetch_width: float = knob(
        1.0, "how many experts prefetch expects in a layer, as a multiple of top-k", needs=(needs.PREFETCHES,))
    sync_window: int = knob(
        1, "layers between checks of what the routers chose; 1: each, all (0): a token, auto (-1)", unit="layers",
        needs=(needs.MISSES,))
    read_block_kib: int = knob(
        4096, "largest single read, KiB; an expert is read in such blocks, side by side", unit="KiB", needs=(needs.STREAMS,))
    read_threads: int = knob(16, "threads that read", needs=(needs.STREAMS,))
    io_mode: str = knob("buffered", "buffered: through the page cache; direct: past it", needs=(needs.STREAMS,))
    prefill_chunk: int = knob(
        512, "tokens a forward pass while a prompt is prefilled; Mamba layers round by it", unit="tokens")
    verify_reads: bool = knob(False, "compare what is read of a packed store with its checksums before it is computed with")
    ssd_gbps: float | None = knob(
        None, "hold reads to this bandwidth, 10^9 bytes/s over all threads; unset: as fast as it goes", unit="GB/s",
        needs=(needs.STREAMS,))
    expert_bits: int | None = knob(
        None, "bits of the routed experts; unset: as in the checkpoint", unit="bits", lossless=False, needs=(needs.NO_PLAN,))
    cold_bits: int | None = knob(
        None, "bits of the experts that are not hot; unset: all have expert_bits", unit="bits", lossless=False,
        needs=(needs.NO_PLAN,))
    hot_share: float | None = knob(
        None, "share of the experts' weights, the most important ones, that keep expert_bits; 0.25 if only cold_bits is set",
        lossless=False, needs=(needs.NO_PLAN, needs.COLD))
    freq_exponent: float = knob(
        1.0, "importance goes with the share of its layer's uses that an expert has, to this power", lossless=False,
        needs=(needs.NO_PLAN, needs.COLD))
    bits_plan: str | None = knob(
        None, "file of a saved plan, which says every expert's bits; unset: computed from these knobs", lossless=False)
    cold_drop: float = knob(
        0.0, "leave out an expert that is not cached and whose share of the token's gate weight is below cold_drop / top-k",
        lossless=False, by_cache=True, needs=(needs.MISSES, needs.EACH_LAYER))
    cache_prior: float = knob(
        0.0, "raise the routers' logits of cached experts by so many times the range of the 2 top-k best; top-1 stays",
        lossless=False, by_cache=True, needs=(needs.MISSES, needs.EACH_LAYER))
    top_k: int | None = knob(
        None, "experts that a token uses in a layer; unset: as the model has it", unit="experts", lossless=False)
    resident_bits: int | None = knob(
        None, "bits of attention, shared experts, dense layers, embeddings and head; unset: as stored", unit="bits",
        lossless=False)
    # fmt: on

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _typed(f.name, str(f.type), getattr(self, f.name)))
        for name, above, most, remedy in (
            ("cache_gb", 0, math.inf, "give the memory for experts in GB, or leave it unset"),
            ("evict_half_life", 0, math.inf, "give it in tokens; 8 to 32 suits real traces"),
            ("prefetch_depth", -1, 64, "1 or 2 layers are usual"),
            ("prefetch_width", 0, 8, "1 to 2 times top-k are usual"),
            ("sync_window", -2, 1 << 20, "give layers, all or auto"),
            ("read_block_kib", 3, 1 << 20, "4 KiB is the smallest block, 64 to 8192 are usual"),
            ("read_threads", 0, 256, "1 to 16 are usual"),
            ("prefill_chunk", 0, 1 << 20, "32 to 4096 tokens are usual"),
            ("ssd_gbps", 0, math.inf, "give GB/s, or leave it unset for no limit"),
            ("top_k", 0, math.inf, "half of the model's own and more are usual, or leave it unset"),
        ):
            value = getattr(self, name)
            if value is not None and not above < value <= most:
                limit = f"above {above:g}" + ("" if math.isinf(most) else f" and at most {most:g}")
                raise KnobError(f"{name}={value:g} is out of range: it must be {limit}; {remedy}")
        for name, legal in (("io_mode", IO_MODES), ("prefetch", PREFETCH)):
            value = getattr(self, name)
            if line := removed(name, value):
                raise KnobError(line)
            if value not in legal:
                raise KnobError(f"{name}={value} is unknown; {did_you_mean(value, list(legal))}")
        for name, widths in (("expert_bits", BITS), ("cold_bits", BITS), ("resident_bits", BITS[:-1])):
            bits = getattr(self, name)
            if bits is not None and bits not in widths:
                raise KnobError(f"{name}={bits} is not a width MLX has; use one of {', '.join(map(str, widths))}")
        for name, low, high, usual in (
            ("pinned_share", 0, 0.9, "0 is without, 0.1 to 0.5 are usual"),
            ("cache_layer_shape", -0.9, 0.9, "0 is without, 0.1 to 0.5 are usual"),
            ("cold_drop", 0, 1.5, "0 is without, 0.5 to 1 are usual"),
            ("hot_share", 0, 1, "give a share of the experts' weights"),
            ("freq_exponent", 0, 2, "0 ignores the frequency, 1 takes it as it is"),
        ):
            if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                raise KnobError(f"{self.shown(name)} is outside {low:g} .. {high:g}; {usual}")
        if not 0 <= self.cache_prior < math.inf:
            raise KnobError(f"cache_prior={self.cache_prior:g} is not 0 or above; 0 is without, 0.1 to 1 are usual")
        if self.expert_bits is not None and self.cold_bits is not None and self.cold_bits > self.expert_bits:
            raise KnobError(f"cold_bits={self.cold_bits} is above expert_bits={self.expert_bits}; swap the two")
        without = idle(vars(self))
        for name in (name for name in self.set_names() if name in without):
            need = without[name]
            raise KnobError(f"{self.shown(name)} {need.refusal.format(self.shown(need.knob))}")

    @property
    def streams(self) -> bool:
        """Whether any expert is streamed or changed; else mlx-lm's own model runs, with its own experts."""
        return self.cache_gb is not None or any(name not in ("top_k", "resident_bits") for name in self.lossy)

    @property
    def lossy(self) -> dict[str, Any]:
        """The lossy knobs that are set."""
        return {name: getattr(self, name) for name in self.set_names() if name in LOSSY}

    def shown(self, name: str) -> str:
        """A knob and its value as a user writes them, e.g. `sync_window=all`."""
        value = getattr(self, name)
        word = next((w for w, v in WORDS.get(name, {}).items() if v == value), None)
        plain = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
        return f"{name}={word or plain}"

    def set_names(self) -> list[str]:
        """The knobs that are not at their default."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Knobs:
        """Knobs from plain names and values (YAML, JSON, a Parquet row). Raises `KnobError` for an unknown name
        and for that of a removed knob."""
        for name in values:
            if name in REMOVED:
                raise KnobError(removed(name))
            if name not in cls.names():
                raise KnobError(f"{name} is not a knob; {did_you_mean(name, list(cls.names()))}")
        return cls(**values)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all knobs, in the order of the documentation."""
        return tuple(f.name for f in dataclasses.fields(cls))

    @classmethod
    def table(cls) -> str:
        """All knobs as a Markdown table; docs/knobs.md holds it, and a test says when it is stale."""
        lines = ["| knob | default | lossless | what it does |", "|---|---|---|---|"]
        for f in dataclasses.fields(cls):
            plain = f.default if isinstance(f.default, str) else str(f.default).lower()
            default = "unset" if f.default is None else plain if isinstance(f.default, bool | str) else f"{f.default:g}"
            lossless = "yes" if f.metadata["lossless"] else "no, by the cache" if f.metadata["by_cache"] else "no"
            lines.append(f"| `{f.name}` | {default} | {lossless} | {f.metadata['text']} |")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Name -> value, JSON-ready."""
        return dataclasses.asdict(self)

    @property
    def resolved_hot_share(self) -> float:
        """The share of the experts' weights at `expert_bits`: 1 without `cold_bits`, else `hot_share` or `HOT_SHARE`."""
        if self.cold_bits is None:
            return 1.0
        return HOT_SHARE if self.hot_share is None else self.hot_share


NEEDS: dict[str, tuple[Need, ...]] = {f.name: f.metadata["needs"] for f in dataclasses.fields(Knobs)}
_ORDER = (*TopologicalSorter({name: {need.knob for need in needs} for name, needs in NEEDS.items()}).static_order(),)
DEFAULTS = {f.name: f.default for f in dataclasses.fields(Knobs)}
# Quality is a matter of the lossy knobs alone unless one of those that depend on the cache is set: then of all of them.
LOSSY = tuple(f.name for f in dataclasses.fields(Knobs) if not f.metadata["lossless"])
CACHE_DEPENDENT = tuple(f.name for f in dataclasses.fields(Knobs) if f.metadata["by_cache"])
NEEDS_MISSES = tuple(name for name, needs in NEEDS.items() if any(need.misses for need in needs))


def idle(values: Mapping[str, Any]) -> dict[str, Need]:
    """The knobs that can have no effect among the values of all knobs, each with the first of its needs that is not met. A
    need looks at what has an effect: a knob without one counts as if it were at its default."""
    found: dict[str, Need] = {}
    for name in _ORDER:
        unmet = (n for n in NEEDS[name] if not n.met((DEFAULTS if n.knob in found else values)[n.knob], values[name]))
        if (need := next(unmet, None)) is not None:
            found[name] = need
    return found


def enabling(name: str) -> dict[str, Any]:
    """Values of other knobs with which a value of knob `name` can have an effect."""
    return {other: value for n in NEEDS[name] for other, value in {**enabling(n.knob), n.knob: n.like}.items()}


def _typed(name: str, annotation: str, value: Any) -> Any:
    """`value` as the field's type; whole floats pass as integers, nothing else is converted."""
    if value is None and "None" in annotation:
        return None
    kind = annotation.split(" |")[0]
    if kind == "bool":
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise KnobError(f"{name}={value!r} is not a switch; give true or false")
    if isinstance(value, str) and value in WORDS.get(name, {}):
        return WORDS[name][value]
    if kind == "str" and isinstance(value, str):
        return value
    if kind != "str" and isinstance(value, int | float) and not isinstance(value, bool):
        if kind == "float":
            return float(value)
        if float(value).is_integer():
            return int(value)
    wanted = {"str": "text", "int": "a whole number", "float": "a number"}[kind]
    raise KnobError(f"{name}={value!r} is not {wanted}; give {wanted}")
