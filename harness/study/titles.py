"""What ran, and on what, as a headline and a plot's title say it: of rows, or of a study before there are any."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

FACTS = ("model", "device", "backend", "cpu", "cores", "ssd_gbps")


def title(facts: Mapping[str, Iterable[Any]]) -> str:
    """`kimi_mini on AMD EPYC 7B13 (2 cores, cpu), reads held to 0.1 GB/s` of the columns `FACTS`, each with all its values.
    Where the engine does not say what computed, the machine is named; what older rows
    have as their device stays."""
    said = {name: sorted({v for v in values if not pd.isna(v)}) for name, values in ((name, facts[name]) for name in FACTS)}
    devices = said["device"] or [f"a machine with {cpu} ({said['cores'][0]} cores)" for cpu in said["cpu"]]
    backend = ", ".join(said["backend"])
    on = [_with(short(device), backend) for device in devices]
    held = f", reads held to {', '.join(f'{v:g}' for v in said['ssd_gbps'])} GB/s" if said["ssd_gbps"] else ""
    return f"{', '.join(said['model'])} on {' and '.join(on)}{held}"


def short(name: str) -> str:
    """A processor's name without what all of its kind have in it: `Intel Xeon @ 2.20GHz`."""
    return " ".join(re.sub(r"\((?:R|TM|tm)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b", " ", name).split())


def _with(device: str, backend: str) -> str:
    if not backend:
        return device
    return f"{device[:-1]}, {backend})" if device.endswith("cores)") else f"{device} ({backend})"
