"""Identity: what differs between two studies in machine, versions, model, texts, protocol and search, and what follows.

A difference either explains the figures (another disk, another version) or makes some of them incomparable:

- perplexity and KL divergence need the same evaluation texts and the same model;
- speeds and bytes per token need the same protocol, because warm-up, timed tokens, page cache and the state of the experts'
  cache define what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from engine.checkpoint.fingerprint import another
from engine.measure.protocol import PREFILLED
from harness.results.metrics import METRICS, QUALITY, SPEEDS
from harness.show.text import number
from harness.study.manifest import changes

from .sides import Side

GROUPS = {
    "model": ("model", "architecture", "model_fingerprint"),
    "texts": ("eval_texts", "eval_fingerprint"),
    "machine": (
        "machine",
        "cpu",
        "cores",
        "machine_memory_gb",
        "device",
        "backend",
        "os",
        "ssd_gbps",
        "limit_gb",
        "device_profile",
    ),
    "versions": ("headrace_version", "commit", "dirty", "engine", "python", "mlx", "mlx_lm", "optuna", "schema_version"),
    "protocol": ("warm_up_tokens", "timed_tokens", "page_cache", "state"),
    "search": ("objectives", "constraints", "space", "seed", "sampler"),
}
ROUNDING = ("cpu", "device", "backend", "headrace_version", "commit", "dirty", "engine", "mlx", "mlx_lm")
UNKNOWN = "unknown"
SHOWN_COMMIT = 10  # characters
ROUNDED_GB = 0.5  # sizes of memory that differ by less are those of one machine


@dataclass(frozen=True)
class Difference:
    """A fact in which two studies differ."""

    group: str
    name: str
    base: str
    other: str

    def __str__(self) -> str:
        return f"{self.name} {self.base} -> {self.other}"


@dataclass(frozen=True)
class Identity:
    """What two studies share and where they differ. `incomparable`: metric -> reason; `causes`: lines about the figures."""

    differences: tuple[Difference, ...]
    incomparable: dict[str, str]
    causes: tuple[str, ...]
    same: tuple[str, ...] = field(default=())  # groups without a difference

    @property
    def same_rounding(self) -> bool:
        """Whether equal settings give equal quality to the last bit: nothing differs that may change the rounding."""
        return not any(d.name in ROUNDING for d in self.differences)


def identity(base: Side, other: Side) -> Identity:
    """The differences between two studies, from their rows and manifests."""
    found: list[Difference] = []
    for group, names in GROUPS.items():
        for name in names:
            a, b = fact(base, name), fact(other, name)
            if a != b:
                found += _space(base, other, a, b) if name == "space" else [Difference(group, name, a, b)]
    differing = {d.group for d in found}
    same = tuple(group for group in GROUPS if group not in differing)
    return Identity(tuple(found), _incomparable(base, other, found), tuple(_causes(base, other, found)), same)


def fact(side: Side, name: str) -> str:
    """A fact of a study as text; `unknown` where no row has it."""
    if name == "constraints":
        return "; ".join(map(str, side.manifest.get("identity", {}).get("constraints") or [])) or "none"
    if name == "objectives":
        return ", ".join(side.objectives)
    values = side.df[name].dropna() if name in side.df else pd.Series(dtype=object)
    known = sorted(values.unique().tolist(), key=str)
    if name == "ssd_gbps" and not known:
        return "unlimited"
    if name == "state":
        known = sorted({*known, *([PREFILLED] if not known or side.df[name].isna().any() else [])})
    if name == "device_profile" and not known:
        return "its own"
    if name == "commit":
        known = [str(v)[:SHOWN_COMMIT] for v in known]
    if name in ("machine_memory_gb", "limit_gb"):
        known = sorted({round(float(v) / ROUNDED_GB) * ROUNDED_GB for v in known})
    return ", ".join(number(v, 6) for v in known) or UNKNOWN


def facts(side: Side) -> dict[str, str]:
    """All facts of a study, by name."""
    return {name: fact(side, name) for names in GROUPS.values() for name in names}


def _space(base: Side, other: Side, a: str, b: str) -> list[Difference]:
    """The knobs whose ranges differ. A limit of the disk is a fact of the machine and is left out."""
    old, new = (side.manifest.get("identity", {}).get("space") for side in (base, other))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [Difference("search", "space", a, b)]
    found = []
    for line in changes(old, new):
        name, _, rest = line.partition(" was ")
        before, _, after = rest.partition(" and is now ")
        if "ssd_gbps" not in name:
            found.append(Difference("search", name, before, after))
    return found


def _incomparable(base: Side, other: Side, found: Sequence[Difference]) -> dict[str, str]:
    names = {d.name: d for d in found}
    reasons: dict[str, str] = {}
    texts, model = names.get("eval_fingerprint"), names.get("model_fingerprint") or names.get("model")
    if (
        model
        and model.name == "model"
        and UNKNOWN not in (fact(base, "model_fingerprint"), fact(other, "model_fingerprint"))
    ):
        model = None  # the same content under another name
    for metric in METRICS:
        if metric in QUALITY and texts:
            reasons[metric] = f"the evaluation texts differ ({fact(base, 'eval_texts')} {texts.base}, " \
                              f"{fact(other, 'eval_texts')} {texts.other})"  # fmt: skip
        elif metric in QUALITY and model:
            reasons[metric] = f"the models differ ({_model(base)}, {_model(other)}): {another(model.base, model.other)}"
        elif metric in (*SPEEDS, "bytes_per_token") and (changed := [d for d in found if d.group == "protocol"]):
            reasons[metric] = f"the protocol differs ({'; '.join(map(str, changed))})"
    return reasons


def _model(side: Side) -> str:
    return f"{fact(side, 'model')} {fact(side, 'model_fingerprint')}"


def _causes(base: Side, other: Side, found: Sequence[Difference]) -> list[str]:
    """For each group that may explain a difference of the figures, one line that says so."""
    lines = []
    names: dict[str, Any] = {d.name: d for d in found}
    if limit := names.get("ssd_gbps"):
        lines.append(f"ssd_gbps differs ({limit.base} -> {limit.other}): the speeds are those of two disks")
    if {"cpu", "cores", "device", "backend", "machine_memory_gb"} & set(names):
        lines.append("the machines differ in kind: the speeds are those of two kinds of machine")
    elif "machine" in names:
        lines.append("the machines are of one kind, but not the same: their speeds may differ")
    if {"headrace_version", "commit", "engine", "mlx", "mlx_lm", "python"} & set(names):
        lines.append("versions differ: they may explain differences of speed and memory")
    if "model_fingerprint" in names:
        lines.append("the models differ: speed and memory are those of two models")
    if "eval_fingerprint" in names:
        lines.append("the evaluation texts differ: the speeds are measured on other tokens")
    if other.own_wishes and base.wishes != other.own_wishes:  # unknown without a manifest
        lines.append(f"the rules of recommendation differ; those of {base.name} hold for both")
    return lines
