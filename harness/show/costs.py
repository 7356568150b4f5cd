"""Costs: what a study's runs wrote to the disk and spent, and whether their reads were those of a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.knobs import GB
from engine.measure.read_source import DISK

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 8


def costs(df: pd.DataFrame) -> list[str]:
    """Lines on energy, on bytes written and swapped out, and on direct reads that did not come from the disk."""
    return [*_energy(df), *_written(df), *_indirect(df)]


def _energy(df: pd.DataFrame) -> list[str]:
    spent = df[["trial", "energy_j_per_1k_tokens"]].dropna().astype(float).groupby("trial")["energy_j_per_1k_tokens"].mean()
    if not len(spent):
        return []
    least, most = spent.idxmin(), spent.idxmax()
    return [
        f"energy while decoding: {spent[least]:.3g} J per 1,000 tokens (trial {int(least)}) "
        f"to {spent[most]:.3g} J (trial {int(most)})"
    ]


def _written(df: pd.DataFrame) -> list[str]:
    parts = []
    for name, by in (("disk_bytes_written", "by the runs"), ("run_swap_out_bytes", "swapped out by the whole machine")):
        known = df[name].dropna().astype(float)
        if len(known):
            parts.append(f"{known.sum() / GB:.3g} GB {by}")
    return [f"written to the disk: {', '.join(parts)} ({int(df['disk_bytes_written'].notna().sum())} runs)"] if parts else []


def _indirect(df: pd.DataFrame) -> list[str]:
    found = df[(df["io_mode"] == "direct") & df["read_source"].notna() & (df["read_source"] != DISK)]
    if not len(found):
        return []
    trials = sorted({int(t) for t in found["trial"]})
    names = ", ".join(map(str, trials[:MOST_NAMED])) + (", ..." if len(trials) > MOST_NAMED else "")
    return [
        f"io_mode=direct, but not from the disk by the system's count: trial {names}; their speed is that of a cache, or "
        "this disk is not counted"
    ]
