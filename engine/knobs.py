"""Knobs: the settings of the streaming engine.

A knob has the same name in Python, in YAML, in the Parquet columns and on the plots. A *lossless* knob changes speed and
memory but no bit of the logits. Some lossy knobs decide by the experts that are cached at the moment; with one of them set,
lossless knobs change quality too, so quality measured with one cache does not hold for another. A value without effect (a
streaming knob while everything is resident, a `hot_share` without `cold_bits`) is refused, not ignored.
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
HOT_SHARE = 0.25  # default hot_share if cold_bits is set
WORDS = {"sync_window": {"all": 0, "auto": -1}, "prefill_chunk": {"auto": 0}}  # named values
# Removed knobs and values (KNOB=VALUE) of earlier versions -> reason, and what to use instead.
REMOVED: dict[str, str] = {
    "prefetch=previous_token": "it avoided 5 % of kimi_mini's misses, stale_gate 56 %; use prefetch=stale_gate",
    "prefetch_cap_mb": "a cap of 0.1 MB avoided 12 % of kimi_mini's misses, no cap 56 %; use prefetch_width",
    "bits_by": "plans by layer or projection were no better than random plans; use hot_share, which selects experts",
    "gate_exponent": "gate weights added nothing to frequency; use freq_exponent",
    "error_exponent": "errors differ by only a few percent between experts; use freq_exponent",
    "cold_lowbit": "cache_prior saved more reads for less loss; use cache_prior",
    "lowbit_share": "it belonged to cold_lowbit, and cache_prior saved more reads for less loss; use cache_prior",
}


def removed(name: str, value: Any = None) -> str | None:
    """The message for a removed knob or value; None for any other."""
    if name in REMOVED:
        return f"knob {name} was removed: {REMOVED[name]}"
    why = REMOVED.get(f"{name}={value}")
    return None if why is None else f"knob value {name}={value} was removed: {why}"


def knob(
    default: Any, text: str, *, unit: str = "", lossless: bool = True, by_cache: bool = False, needs: tuple[Need, ...] = (),
    backend: str | None = None,
) -> Any:  # fmt: skip
    """A dataclass field with the text for the generated tables and `--help`. `by_cache`: the effect on the logits depends on
    the cached experts; `needs`: conditions on other knobs, without which this one has no effect; `backend`: the only backend
    of MLX that has it."""
    metadata = {"lossless": lossless, "text": text, "unit": unit, "by_cache": by_cache, "needs": needs, "backend": backend}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Knobs:
    """The settings of one run. `Knobs()`, the reference, keeps everything resident and changes no weight.

    Raises `KnobError` for a value that is out of range or has no effect.
    """

    # fmt: off
    cache_gb: float | None = knob(
        None, "memory for routed experts, in 10^9 bytes; unset: all experts resident, no streaming", unit="GB")
    evict_half_life: float = knob(
        16.0, "eviction: half-life of an expert's use count, in tokens; near 0 is LRU, 1e9 is LFU", unit="tokens",
        needs=(needs.MISSES,))
    cache_layer_shape: float = knob(
        0.0, "tilt of the cache over the layers: the first gets 1 + this times the mean share, the last 1 - this",
        needs=(needs.MISSES,))
    pinned_share: float = knob(
        0.0, "share of each layer's slots pinned to its most-used experts (on a calibration text)",
        needs=(needs.MISSES,))
    prefetch: str = knob(
        "off",
        "predictor of the next layers' experts: off, stale_gate (their routers on this layer's input)",
        needs=(needs.MISSES, needs.NO_WINDOW))
    prefetch_depth: int = knob(
        1, "number of layers that prefetch looks ahead; 0: the layer itself, a control that reads nothing", unit="layers",
        needs=(needs.PREFETCHES,))
    prefetch_width: float = knob(
        1.0, "number of experts that prefetch predicts per layer, as a multiple of top_k", needs=(needs.PREFETCHES,))
    sync_window: int = knob(
        1, "speculative window: layers computed before one check of the routers' choice; all (0): a whole token; auto (-1)",
        unit="layers", needs=(needs.MISSES,))
    read_block_kib: int = knob(
        1024, "block size: largest single read, in KiB; the blocks of an expert are read in parallel", unit="KiB",
        needs=(needs.STREAMS,))
    read_threads: int = knob(16, "number of threads that read", needs=(needs.STREAMS,))
    io_mode: str = knob("buffered", "buffered: through the page cache; direct: past the page cache", needs=(needs.STREAMS,))
    prefill_chunk: int = knob(
        0, "prefill chunk size in tokens; auto (0): by memory, from 128 to 4096; changes rounding in Mamba layers",
        unit="tokens")
    verify_reads: bool = knob(False, "verify the checksums of all reads of a packed store")
    ssd_gbps: float | None = knob(
        None, "simulated disk bandwidth over all threads, in 10^9 bytes/s; unset: no limit", unit="GB/s",
        needs=(needs.STREAMS,))
    gpu_keep_warm: bool = knob(
        False, "Metal only: multiply small matrices on a stream of their own while decoding, to keep the GPU's clock up",
        backend="metal")
    mlx_ops_per_buffer: int | None = knob(
        None, "Metal only: most operations of one command buffer (MLX_MAX_OPS_PER_BUFFER); unset: MLX's choice for the GPU",
        backend="metal")
    mlx_mb_per_buffer: int | None = knob(
        None, "Metal only: most data of one command buffer (MLX_MAX_MB_PER_BUFFER); unset: MLX's choice for the GPU",
        unit="MB", backend="metal")
    mlx_fast_synch: bool = knob(
        False, "Metal only: faster synchronization of CPU and GPU (MLX_METAL_FAST_SYNCH, macOS 15 and later)",
        backend="metal")
    mlx_cuda_graphs: bool = knob(
        True, "CUDA only: launch many kernels together, as a CUDA graph (MLX_USE_CUDA_GRAPHS); false: each at once",
        backend="cuda")
    expert_bits: int | None = knob(
        None, "bits of the routed experts; unset: as in the checkpoint", unit="bits", lossless=False, needs=(needs.NO_PLAN,))
    cold_bits: int | None = knob(
        None, "bits of the experts that are not hot; unset: expert_bits for all", unit="bits", lossless=False,
        needs=(needs.NO_PLAN,))
    hot_share: float | None = knob(
        None, "share of the experts' weights, by importance, that keeps expert_bits; 0.25 if only cold_bits is set",
        lossless=False, needs=(needs.NO_PLAN, needs.COLD))
    freq_exponent: float = knob(
        1.0, "importance of an expert = (its share of the layer's uses) ** freq_exponent", lossless=False,
        needs=(needs.NO_PLAN, needs.COLD))
    bits_plan: str | None = knob(
        None, "file of a saved plan with the bits of every expert; unset: computed from the knobs above", lossless=False)
    cold_drop: float = knob(
        0.0, "omit an expert that is not cached and whose share of the token's gate weight is below cold_drop / top_k",
        lossless=False, by_cache=True, needs=(needs.MISSES, needs.EACH_LAYER))
    cache_prior: float = knob(
        0.0, "add cache_prior x (range of the 2 top_k best logits) to the router logits of cached experts; top-1 stays",
        lossless=False, by_cache=True, needs=(needs.MISSES, needs.EACH_LAYER))
    top_k: int | None = knob(
        None, "number of experts per token and layer; unset: the model's own", unit="experts", lossless=False)
    resident_bits: int | None = knob(
        None, "bits of attention, shared experts, dense layers, embeddings and head; unset: as stored", unit="bits",
        lossless=False)
    # fmt: on

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _typed(f.name, str(f.type), getattr(self, f.name)))
        for name, above, most, remedy in (
            ("cache_gb", 0, math.inf, "give the memory for experts in GB, or unset it"),
            ("evict_half_life", 0, math.inf, "give tokens; 8 to 32 suits real traces, 1e9 is LFU"),
            ("prefetch_depth", -1, 64, "1 or 2 layers are usual"),
            ("prefetch_width", 0, 8, "1 to 2 times top-k are usual"),
            ("sync_window", -2, 1 << 20, "give layers, all or auto"),
            ("read_block_kib", 3, 1 << 20, "4 KiB is the smallest block, 64 to 8192 are usual"),
            ("read_threads", 0, 256, "1 to 16 are usual"),
            ("prefill_chunk", -1, 1 << 20, "128 to 4096 tokens are usual, or give auto"),
            ("mlx_ops_per_buffer", 0, 1 << 20, "10 to 500 are usual"),
            ("mlx_mb_per_buffer", 0, 1 << 20, "10 to 500 MB are usual"),
            ("ssd_gbps", 0, math.inf, "give GB/s, or unset it for no limit"),
            ("top_k", 0, math.inf, "half of the model's own number and more are usual"),
        ):
            value = getattr(self, name)
            if value is not None and not (above < value <= most and math.isfinite(value)):
                limit = f"above {above:g} and " + ("finite" if math.isinf(most) else f"at most {most:g}")
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
                raise KnobError(f"{name}={bits} is not a width that MLX supports; use one of {', '.join(map(str, widths))}")
        for name, low, high, usual in (
            ("pinned_share", 0, 0.9, "0 is off, 0.1 to 0.5 are usual"),
            ("cache_layer_shape", -0.9, 0.9, "0 is off, 0.1 to 0.5 are usual"),
            ("cold_drop", 0, 1.5, "0 is off, 0.5 to 1 are usual"),
            ("hot_share", 0, 1, "give a share of the experts' weights"),
            ("freq_exponent", 0, 2, "0 ignores the frequency, 1 uses it unchanged"),
        ):
            if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                raise KnobError(f"{self.shown(name)} is outside {low:g} .. {high:g}; {usual}")
        if not 0 <= self.cache_prior < math.inf:
            raise KnobError(f"cache_prior={self.cache_prior:g} is below 0 or not finite; 0 is off, 0.1 to 1 are usual")
        if self.expert_bits is not None and self.cold_bits is not None and self.cold_bits > self.expert_bits:
            raise KnobError(f"cold_bits={self.cold_bits} is above expert_bits={self.expert_bits}; swap the two")
        without = idle(vars(self))
        for name in (name for name in self.set_names() if name in without):
            need = without[name]
            raise KnobError(f"{self.shown(name)} {need.refusal.format(self.shown(need.knob))}")

    @property
    def streams(self) -> bool:
        """Whether any expert is streamed or changed. If not, mlx-lm's own model runs with its own experts."""
        return self.cache_gb is not None or any(name not in ("top_k", "resident_bits") for name in self.lossy)

    @property
    def lossy(self) -> dict[str, Any]:
        """The lossy knobs that are set."""
        return {name: getattr(self, name) for name in self.set_names() if name in LOSSY}

    def shown(self, name: str) -> str:
        """A knob and its value in the user's notation, e.g. `sync_window=all`."""
        value = getattr(self, name)
        word = next((w for w, v in WORDS.get(name, {}).items() if v == value), None)
        plain = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
        return f"{name}={word or plain}"

    def set_names(self) -> list[str]:
        """The knobs that are not at their default."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Knobs:
        """Knobs from names and values (YAML, JSON, a Parquet row). Raises `KnobError` for an unknown or removed name."""
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
        """All knobs as a Markdown table, for docs/knobs.md; a test fails when that file is stale."""
        lines = ["| knob | default | lossless | what it does |", "|---|---|---|---|"]
        for f in dataclasses.fields(cls):
            default = "unset" if f.default is None else default_text(f.name)
            lossless = "yes" if f.metadata["lossless"] else "no, depends on the cache" if f.metadata["by_cache"] else "no"
            lines.append(f"| `{f.name}` | {default} | {lossless} | {f.metadata['text']} |")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return dataclasses.asdict(self)

    @property
    def resolved_hot_share(self) -> float:
        """Share of the experts' weights at `expert_bits`: 1 without `cold_bits`, otherwise `hot_share` or `HOT_SHARE`."""
        if self.cold_bits is None:
            return 1.0
        return HOT_SHARE if self.hot_share is None else self.hot_share


NEEDS: dict[str, tuple[Need, ...]] = {f.name: f.metadata["needs"] for f in dataclasses.fields(Knobs)}
_ORDER = (*TopologicalSorter({name: {need.knob for need in needs} for name, needs in NEEDS.items()}).static_order(),)
DEFAULTS = {f.name: f.default for f in dataclasses.fields(Knobs)}
# Quality depends only on the lossy knobs, unless a cache-dependent one is set; then it depends on all knobs.
LOSSY = tuple(f.name for f in dataclasses.fields(Knobs) if not f.metadata["lossless"])
CACHE_DEPENDENT = tuple(f.name for f in dataclasses.fields(Knobs) if f.metadata["by_cache"])
# The knobs of one backend -> that backend.
BACKENDS: dict[str, str] = {f.name: own for f in dataclasses.fields(Knobs) if (own := f.metadata["backend"])}
NEEDS_MISSES = tuple(name for name, needs in NEEDS.items() if any(need.misses for need in needs))


def default_text(name: str) -> str:
    """The default of a knob in the user's notation, e.g. `auto`."""
    return Knobs().shown(name).partition("=")[2]


def idle(values: Mapping[str, Any]) -> dict[str, Need]:
    """The knobs without effect, given the values of all knobs, each with its first unmet need. For the needs of others, a
    knob without effect counts as its default."""
    found: dict[str, Need] = {}
    for name in _ORDER:
        unmet = (n for n in NEEDS[name] if not n.met((DEFAULTS if n.knob in found else values)[n.knob], values[name]))
        if (need := next(unmet, None)) is not None:
            found[name] = need
    return found


def enabling(name: str) -> dict[str, Any]:
    """Values of other knobs with which knob `name` has an effect."""
    return {other: value for n in NEEDS[name] for other, value in {**enabling(n.knob), n.knob: n.like}.items()}


def _typed(name: str, annotation: str, value: Any) -> Any:
    """`value` as the field's type. Whole floats are accepted as integers; nothing else is converted."""
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
