"""Table of `bench prefill`."""

from __future__ import annotations

import sys
from typing import Any


def print_table(result: dict[str, Any]) -> None:
    """Print bandwidth, the choice of `auto`, and one row for each prompt, cached share and chunk."""
    from rich.console import Console
    from rich.table import Table

    low, middle, high = result["io_gbps"]
    console = Console(width=None if sys.stdout.isatty() else 130)  # 80 columns would cut the shares
    console.print(f"{result['mode']}; routing: {result['routing']}; plain reads {middle:.2f} GB/s ({low:.2f} .. {high:.2f})")
    console.print(f"prefill_chunk=auto is {result['auto_chunk']} tokens: {result['auto_reason']}")
    console.print("ceilings: serial must/bandwidth + compute, overlapped the larger; speed: over the first chunk's")
    table = Table(box=None)
    names = ("prompt", "cached", "chunk", "TTFT s", "tok/s", "speed", "read GB", "must", "pass GB")
    for name in (*names, "of serial", "of overlapped", "of resident"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            str(row["prompt"]),
            "resident" if row["cached"] is None else f"{row['cached']:.1%}",
            str(row["chunk"]),
            _seconds(row["ttft_s"]),
            f"{row['prefill_tok_s'][1]:.0f}",
            f"{row['speed_over_first_chunk'][1]:.2f}",
            f"{row['read_gb']:.4g}",
            f"{row['must_read_gb']:.4g}",
            f"{row['pass_gb']:.3g}",
            *(_share(row[name]) for name in ("share_of_serial", "share_of_overlapped", "share_of_resident")),
        )
    console.print(table)


def _seconds(figure: tuple[float, float, float]) -> str:
    low, middle, high = figure
    return f"{middle:.3g} ({low:.3g}..{high:.3g})"


def _share(figure: tuple[float, float, float] | None) -> str:
    return "-" if figure is None else f"{figure[1]:.2f}"
