"""Titles: model, device and machine in one line, for the headline of a study and the title of a plot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

FACTS = ("model", "device", "backend", "cpu", "cores", "ssd_gbps")


def title(facts: Mapping[str, Iterable[Any]]) -> str:
    """`kimi_mini on AMD EPYC 7B13 (2 cores, cpu), reads limited to 0.1 GB/s`.

    facts: all values of each column of `FACTS`. Without a device, which only the engine knows, the title names the machine.
    """
    values = {name: sorted({v for v in given if not pd.isna(v)}) for name, given in ((name, facts[name]) for name in FACTS)}
    devices = values["device"] or [f"a machine with {cpu} ({values['cores'][0]} cores)" for cpu in values["cpu"]]
    backend = ", ".join(values["backend"])
    on = [_with(short(device), backend) for device in devices]
    limit = f", reads limited to {', '.join(f'{v:g}' for v in values['ssd_gbps'])} GB/s" if values["ssd_gbps"] else ""
    return f"{', '.join(values['model'])} on {' and '.join(on)}{limit}"


def short(name: str) -> str:
    """A processor's name without generic words: `Intel Xeon @ 2.20GHz`."""
    return " ".join(re.sub(r"\((?:R|TM|tm)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b", " ", name).split())


def _with(device: str, backend: str) -> str:
    if not backend:
        return device
    return f"{device[:-1]}, {backend})" if device.endswith("cores)") else f"{device} ({backend})"
