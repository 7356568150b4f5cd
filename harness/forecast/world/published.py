"""Published measurements: what others measured with engines that stream experts, on which machine, and where it was read."""

from __future__ import annotations

from dataclasses import dataclass

COMPUTES = ("metal", "cuda", "cpu")
KINDS = ("project", "issue", "secondary")


@dataclass(frozen=True)
class Computer:
    """A machine as far as a publication names it; None: not said."""

    chip: str
    compute: str  # what multiplies: one of `COMPUTES`
    memory_gb: float | None = None  # of the CPU, or unified
    gpu_memory_gb: float | None = None  # of a discrete GPU
    ssd_gbps: float | None = None  # reads as the publication measured them


@dataclass(frozen=True)
class Measured:
    """One measurement. Where a publication gives a range, `tokens_per_s` is its middle. Without `cache_gb`, `slots` and
    `memory_used_gb`, the size of the cache is not published, or the system's page cache is the only one."""

    name: str
    engine: str
    machine: Computer
    shape: str  # in engine.shapes
    bits: float  # of a routed weight, as the engine names its format, without scales
    tokens_per_s: float
    source: str
    kind: str  # one of `KINDS`: a project's own pages or code, an issue's author, somebody else
    cache_gb: float | None = None  # memory of the experts that stay
    slots: int | None = None  # experts of a layer that stay
    memory_used_gb: float | None = None  # budget or peak of the whole process
    experts_gb: float | None = None  # all routed experts on the disk
    hit_rate: float | None = None  # share of the experts asked for that were in memory
    read_gb_a_token: float | None = None
    top_k: int | None = None  # only where the engine uses fewer experts than the model has
    lossless: bool = True  # the model's own routing and weights, apart from `bits`
    remarks: str = ""
