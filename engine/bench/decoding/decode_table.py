"""Table of `bench decode`."""

from __future__ import annotations

import sys
from typing import Any


def print_table(result: dict[str, Any]) -> None:
    """Print the ceilings and one row per setting."""
    from rich.console import Console
    from rich.table import Table

    low, middle, high = result["io_gbps"]
    console = Console(width=None if sys.stdout.isatty() else 120)  # 80 columns would cut the shares
    console.print(f"{result['mode']}; {result['routing']}; plain reads {middle:.2f} GB/s ({low:.2f} .. {high:.2f})")
    console.print("ceilings: serial 1/(io + compute), overlapped 1/max(io, compute)")
    if result["window_recall"]:
        shares = ", ".join(f"{share:.2f}" for share in result["window_recall"])
        console.print(f"recall of rejected passes limited to {shares} (first pass, later ones)")
    table = Table(box=None)
    for name in ("cached", "bits", "window", "tok/s", "of resident", "of serial", "of overlapped", "hit", "passes"):
        table.add_column(name, justify="left" if name == "cached" else "right")
    for row in result["rows"]:
        table.add_row(
            "resident" if row["cached"] is None else f"{row['cached']:.1%}",
            f"{row['average_bits']:.3g}",
            row["window"],
            f"{row['decode_tok_s'][1]:.1f}",
            _show(row["share_of_resident"]),
            _show(row["share_of_serial"]),
            _show(row["share_of_overlapped"]).partition(" ")[0],
            "-" if row["hit_rate"] is None else f"{row['hit_rate']:.3f}",
            "-" if row["passes_per_token"] is None else f"{row['passes_per_token']:.2f}",
        )
    console.print(table)


def _show(figure: tuple[float, float, float] | None) -> str:
    if figure is None:
        return "-"
    low, middle, high = figure
    return f"{middle:.2f} ({low:.2f}..{high:.2f})"
