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
from typing import Any

import numpy as np

from .errors import KnobError, did_you_mean

IO_MODES = ("buffered", "direct")
PREFETCH = ("off", "previous_token", "stale_gate")
BITS_BY = ("expert", "layer", "projection")
BITS = (2, 3, 4, 5, 6, 8, 16)
GB = 1_000_000_000
NEEDS_MISSES = ("evict_half_life", "cache_layer_shape", "pinned_share", "prefetch", "sync_window",
                "cold_drop", "cold_lowbit", "cache_prior")  # fmt: skip  # idle while every expert is cached
NEEDS_COLD = ("hot_share", "bits_by", "freq_exponent", "gate_exponent", "error_exponent")  # else nothing is chosen
WORDS = {"sync_window": {"all": 0, "auto": -1}}  # values that have a name


def knob(default: Any, *, lossless: bool, text: str, by_cache: bool = False) -> Any:
    """A dataclass field that carries what the generated tables and `--help` say of the knob. `by_cache`: what it does to the
    logits depends on what is cached."""
    return dataclasses.field(default=default, metadata={"lossless": lossless, "text": text, "by_cache": by_cache})


@dataclass(frozen=True)
class Knobs:
    """The settings of one run. `Knobs()` keeps everything resident and changes no weight: the reference.

    Raises `KnobError` for a value outside its range or one that cannot have an effect.
    """

    cache_gb: float | None = knob(
        None, lossless=True, text="memory for routed experts, 10^9 bytes; unset: every expert resident, nothing streamed"
    )
    evict_half_life: float = knob(
        16.0, lossless=True, text="half-life of an expert's use count, tokens; towards 0 it is LRU, towards infinity LFU"
    )
    cache_layer_shape: float = knob(
        0.0, lossless=True, text="how much more cache the first layers get than the last ones; 0: all alike, below 0: less"
    )
    pinned_share: float = knob(
        0.0,
        lossless=True,
        text="share of the slots that hold each layer's most used experts for good, on a calibration text",
    )
    prefetch: str = knob(
        "off",
        lossless=True,
        text="whom to believe on what comes next: off, previous_token, stale_gate (the next routers on this layer's input)",
    )
    prefetch_depth: int = knob(
        1, lossless=True, text="how many layers ahead prefetch looks; 0: at the layer itself, a control that reads nothing"
    )
    prefetch_width: float = knob(
        1.0, lossless=True, text="how many experts prefetch expects in a layer, as a multiple of top-k"
    )
    prefetch_cap_mb: float | None = knob(
        None, lossless=True, text="most that prefetch reads for one token, 10^6 bytes; unset: no limit"
    )
    sync_window: int = knob(
        1, lossless=True, text="layers between checks of what the routers chose; 1: each, all (0): a token, auto (-1)"
    )
    read_block_kib: int = knob(
        4096, lossless=True, text="largest single read, KiB; an expert is read in such blocks, side by side"
    )
    read_threads: int = knob(16, lossless=True, text="threads that read")
    io_mode: str = knob("buffered", lossless=True, text="buffered: through the page cache; direct: past it")
    prefill_chunk: int = knob(
        512, lossless=True, text="tokens a forward pass while a prompt is prefilled; Mamba layers round by it"
    )
    verify_reads: bool = knob(
        False, lossless=True, text="compare what is read of a packed store with its checksums before it is computed with"
    )
    ssd_gbps: float | None = knob(
        None, lossless=True, text="hold reads to this bandwidth, 10^9 bytes/s over all threads; unset: as fast as it goes"
    )
    expert_bits: int | None = knob(None, lossless=False, text="bits of the routed experts; unset: as in the checkpoint")
    cold_bits: int | None = knob(
        None, lossless=False, text="bits of the experts that are not hot; unset: all have expert_bits"
    )
    hot_share: float | None = knob(
        None,
        lossless=False,
        text="share of the experts' weights, the most important ones, that keep expert_bits; 0.25 if only cold_bits is set",
    )
    bits_by: str = knob(
        "expert",
        lossless=False,
        text="what keeps expert_bits or gets cold_bits as one: an expert, a layer, or one projection of a layer",
    )
    freq_exponent: float = knob(
        1.0, lossless=False, text="importance goes with the share of its layer's uses that an expert has, to this power"
    )
    gate_exponent: float = knob(
        0.0, lossless=False, text="and with the mean gate weight of an expert when it is chosen, to this power"
    )
    error_exponent: float = knob(
        0.0, lossless=False, text="and with the squared error that expert_bits saves over cold_bits, to this power; stores"
    )
    bits_plan: str | None = knob(
        None, lossless=False, text="file of a saved plan, which says every expert's bits; unset: computed from these knobs"
    )
    cold_drop: float = knob(
        0.0,
        lossless=False,
        by_cache=True,
        text="leave out an expert that is not cached and whose share of the token's gate weight is below cold_drop / top-k",
    )
    cold_lowbit: float = knob(
        0.0,
        lossless=False,
        by_cache=True,
        text="bring it in at a store's lowest level if its share is below cold_lowbit / top-k; raise it once it is more",
    )
    lowbit_share: float = knob(
        0.25,
        lossless=False,
        by_cache=True,
        text="share of the cache, beyond one token's experts, for those that cold_lowbit has",
    )
    cache_prior: float = knob(
        0.0,
        lossless=False,
        by_cache=True,
        text="raise the routers' logits of cached experts by so many times the range of the 2 top-k best; top-1 stays",
    )
    top_k: int | None = knob(None, lossless=False, text="experts that a token uses in a layer; unset: as the model has it")
    resident_bits: int | None = knob(
        None, lossless=False, text="bits of attention, shared experts, dense layers, embeddings and head; unset: as stored"
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _typed(f.name, str(f.type), getattr(self, f.name)))
        _in_range("cache_gb", self.cache_gb, 0, math.inf, "give the memory for experts in GB, or leave it unset")
        _in_range("evict_half_life", self.evict_half_life, 0, math.inf, "give it in tokens; 8 to 32 suits real traces")
        _in_range("prefetch_depth", self.prefetch_depth, -1, 64, "1 or 2 layers are usual")
        _in_range("prefetch_width", self.prefetch_width, 0, 8, "1 to 2 times top-k are usual")
        _in_range(
            "prefetch_cap_mb", self.prefetch_cap_mb, 0, math.inf, "give it in MB a token, or leave it unset for no limit"
        )
        _in_range("prefill_chunk", self.prefill_chunk, 0, 1 << 20, "32 to 4096 tokens are usual")
        for name, low, high in (("pinned_share", 0, 0.9), ("cache_layer_shape", -0.9, 0.9)):
            if not low <= getattr(self, name) <= high:
                raise KnobError(
                    f"{name}={getattr(self, name):g} is outside {low:g} .. {high:g}; 0 is without, 0.1 to 0.5 are usual"
                )
        _in_range("sync_window", self.sync_window, -2, 1 << 20, "give layers, all or auto")
        _in_range("read_block_kib", self.read_block_kib, 3, 1 << 20, "4 KiB is the smallest block, 64 to 8192 are usual")
        _in_range("read_threads", self.read_threads, 0, 256, "1 to 16 are usual")
        _in_range("ssd_gbps", self.ssd_gbps, 0, math.inf, "give GB/s, or leave it unset for no limit")
        for name, legal in (("io_mode", IO_MODES), ("prefetch", PREFETCH), ("bits_by", BITS_BY)):
            value = getattr(self, name)
            if value not in legal:
                raise KnobError(f"{name}={value} is unknown; {did_you_mean(value, list(legal))}")
        for name, widths in (("expert_bits", BITS), ("cold_bits", BITS), ("resident_bits", BITS[:-1])):
            bits = getattr(self, name)
            if bits is not None and bits not in widths:
                raise KnobError(f"{name}={bits} is not a width MLX has; use one of {', '.join(map(str, widths))}")
        _in_range("top_k", self.top_k, 0, math.inf, "half of the model's own and more are usual, or leave it unset")
        for name in ("cold_drop", "cold_lowbit"):
            if not 0 <= getattr(self, name) <= 1.5:
                raise KnobError(f"{self.shown(name)} is outside 0 .. 1.5; 0 is without, 0.5 to 1 are usual")
        if not 0 <= self.cache_prior < math.inf:
            raise KnobError(f"cache_prior={self.cache_prior:g} is not 0 or above; 0 is without, 0.1 to 1 are usual")
        if not 0 <= self.lowbit_share <= 0.9:
            raise KnobError(f"lowbit_share={self.lowbit_share:g} is outside 0 .. 0.9; 0.1 to 0.5 are usual")
        if self.hot_share is not None and not 0 <= self.hot_share <= 1:
            raise KnobError(f"hot_share={self.hot_share} is outside 0 .. 1; give a share of the experts' weights")
        for name in ("freq_exponent", "gate_exponent", "error_exponent"):
            if not 0 <= getattr(self, name) <= 2:
                raise KnobError(f"{self.shown(name)} is outside 0 .. 2; 0 ignores that factor, 1 takes it as it is")
        if self.expert_bits is not None and self.cold_bits is not None and self.cold_bits > self.expert_bits:
            raise KnobError(f"cold_bits={self.cold_bits} is above expert_bits={self.expert_bits}; swap the two")
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        if self.prefetch != "off" and self.sync_window != 1:
            raise KnobError(
                f"prefetch={self.prefetch} has no effect with {self.shown('sync_window')}, whose void passes foresee "
                "what is needed; set sync_window=1 or prefetch=off"
            )
        if self.cold_lowbit and self.cold_lowbit <= self.cold_drop:
            raise KnobError(
                f"cold_lowbit={self.cold_lowbit:g} has no effect with cold_drop={self.cold_drop:g}, which leaves all of "
                "those experts out; set cold_lowbit above cold_drop"
            )
        if not self.cold_lowbit and "lowbit_share" in self.set_names():
            raise KnobError(f"{self.shown('lowbit_share')} has no effect without cold_lowbit; set cold_lowbit as well")
        for name in self.set_names():
            if self.cold_lowbit and name in ("cold_bits", "bits_plan", "pinned_share"):
                raise KnobError(
                    f"{self.shown(name)} is not possible with cold_lowbit={self.cold_lowbit:g}, which decides each expert's "
                    "bits by what a token gives it; leave one of the two unset"
                )
            if name in CACHE_DEPENDENT and self.sync_window != 1:
                raise KnobError(
                    f"{self.shown(name)} is not possible with {self.shown('sync_window')}, which computes layers before it "
                    "asks what is cached; set sync_window=1"
                )
            if self.bits_plan is not None and name in ("expert_bits", "cold_bits", *NEEDS_COLD):
                raise KnobError(
                    f"{self.shown(name)} has no effect with bits_plan={self.bits_plan}, which says every expert's bits; "
                    "leave one of the two unset"
                )
            if self.cold_bits is None and name in NEEDS_COLD:
                raise KnobError(f"{self.shown(name)} has no effect without cold_bits; set cold_bits as well")
            if self.prefetch == "off" and name.startswith("prefetch_"):
                raise KnobError(f"{name}={getattr(self, name):g} has no effect with prefetch=off; set prefetch=stale_gate")
            if self.cache_gb is None and name in STREAMING:
                raise KnobError(f"{self.shown(name)} has no effect while every expert is resident; set cache_gb to stream")

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
        """Knobs from plain names and values (YAML, JSON, a Parquet row). Raises `KnobError` for an unknown name."""
        for name in values:
            if name not in cls.names():
                raise KnobError(f"{name} is not a knob; {did_you_mean(name, list(cls.names()))}")
        return cls(**values)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all knobs, in the order of the documentation."""
        return tuple(f.name for f in dataclasses.fields(cls))

    @classmethod
    def table(cls) -> str:
        """All knobs as a Markdown table; the README holds it, and a test says when it is stale."""
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
        """The share of the experts' weights at `expert_bits`: 1 without `cold_bits`, else `hot_share` or 0.25."""
        if self.cold_bits is None:
            return 1.0
        return 0.25 if self.hot_share is None else self.hot_share


# Quality is a matter of the lossy knobs alone unless one of those that depend on the cache is set: then of all of them.
LOSSY = tuple(f.name for f in dataclasses.fields(Knobs) if not f.metadata["lossless"])
CACHE_DEPENDENT = tuple(f.name for f in dataclasses.fields(Knobs) if f.metadata["by_cache"])
# What has no effect while every expert is resident.
WHILE_RESIDENT = (*LOSSY, "cache_gb", "prefill_chunk", "verify_reads")
STREAMING = tuple(n for n in Knobs.names() if n in CACHE_DEPENDENT or n not in WHILE_RESIDENT)


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


def _in_range(name: str, value: float | None, above: float, most: float, remedy: str) -> None:
    if value is not None and not above < value <= most:
        limit = f"above {above:g}" + ("" if math.isinf(most) else f" and at most {most:g}")
        raise KnobError(f"{name}={value:g} is out of range: it must be {limit}; {remedy}")
