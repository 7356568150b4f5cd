"""Setting: what a published measurement asks of its machine, as far as it is published."""

from __future__ import annotations

from dataclasses import dataclass

from engine.checkpoint.experts import AFFINE_BITS
from engine.knobs import GB
from engine.shapes.library import shape
from engine.shapes.shape import Shape
from harness import ConfigError
from harness.forecast.locality import worlds_of
from harness.forecast.speed import Work
from harness.schema import profiles

from .published import Measured

PROCESS_GB = 0.5  # of a process that is neither weights nor experts, where only the whole process is published


@dataclass(frozen=True)
class Published:
    """A published measurement with the figures of its machine and its work."""

    measured: Measured
    memory_gbps: float
    disk_gbps: float
    work: Work
    cached_share: float
    hit_rates: tuple[float, ...]  # one for each possible routing

    @property
    def ms(self) -> float:
        return 1000 / self.measured.tokens_per_s


def lacks(one: Measured) -> str:
    """What a forecast needs and the publication does not give; empty if nothing."""
    if one.cache_gb is None and one.slots is None and one.memory_used_gb is None:
        return "the size of the cache"
    found = _figures(one)
    return "" if all(found) else "the bandwidth of the memory" if found[0] is None else "the bandwidth of the disk"


def published(one: Measured) -> Published:
    """The measurement's work. Raises `ConfigError` for one that `lacks` a figure."""
    if missing := lacks(one):
        raise ConfigError(f"{one.name}: {missing} is not published; leave this measurement out")
    memory, disk = _figures(one)
    assert memory is not None and disk is not None
    model = shape(one.shape)
    experts = sum(switch.experts for switch in model.switches)
    expert_gb = one.experts_gb / experts if one.experts_gb else _bytes(model, one.bits, "expert") / GB
    resident_gb = _bytes(model, one.bits, "resident") / GB
    if one.slots is not None:
        slots = float(one.slots)
    else:
        cache = one.cache_gb if one.cache_gb is not None else (one.memory_used_gb or 0) - resident_gb - PROCESS_GB
        slots = max(0.0, cache) / (expert_gb * model.layers)
    top_k = one.top_k or model.top_k
    worlds = worlds_of(model.experts, top_k)
    missed, missed_layers = worlds.missed([slots])[:, 0], worlds.layers_missed([slots])[:, 0] * model.layers
    token_gb = top_k * model.layers * expert_gb
    work = Work(
        resident_gb - embedding_gb(model, one.bits) + token_gb, tuple((missed * token_gb).tolist()),
        tuple(missed_layers.tolist()), model.layers, all_layers(model),
    )  # fmt: skip
    return Published(one, memory, disk, work, min(1.0, slots / model.experts), tuple((1 - missed).tolist()))


def all_layers(model: Shape) -> int:
    """Layers that compute, those without routed experts too."""
    return int(model.built.layers) if model.has_module else model.layers


def embedding_gb(model: Shape, bits: float | None) -> float:
    """The embedding, of which a token reads one row; 0 where it is the head as well."""
    text = {**model.config, **model.config.get("text_config", {})}
    if text.get("tie_word_embeddings"):
        return 0.0
    size = model.built.vocabulary * model.built.hidden if model.has_module else text["vocab_size"] * text["hidden_size"]
    return float(size * (2 if bits is None else (bits + 0.5) / 8) / GB)


def _bytes(model: Shape, bits: float, what: str) -> float:
    """Bytes at a width that MLX may lack: those of the nearest one it has, in proportion. Scales take half a bit."""
    near = min(AFFINE_BITS, key=lambda n: abs(n - bits))
    found = model.expert_bytes(near) if what == "expert" else model.resident_bytes(near)
    return found * (bits + 0.5) / (near + 0.5)


def _figures(one: Measured) -> tuple[float | None, float | None]:
    """Bandwidths of memory and disk: as published with the measurement, otherwise those of the machine's profile."""
    same = [p for p in profiles().values() if p["chip"] == one.machine.chip]
    near = min(same, key=lambda p: abs(p["memory_gb"] - (one.machine.memory_gb or p["memory_gb"])), default={})
    return near.get("memory_bandwidth_gbps"), one.machine.ssd_gbps or near.get("disk_gbps")
