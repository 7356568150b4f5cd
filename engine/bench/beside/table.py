"""Tables of `bench beside`: speeds of both checkouts, where a token's time goes, and the bookkeeping of a layer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

PARTS = {
    "wall": "token", "io": "  waiting for reads", "sync": "  waiting for the router (sync)", "quantize": "  quantizing",
    "rest": "  rest", "compute_alone": "resident model alone", "io_alone": "plain reads alone",
}  # fmt: skip
COUNTS = {
    "CPU time of a turn, ms": "cpu_ms_per_token", "MB missing": "missing_mb_per_token", "MB read": "read_mb_per_token",
    "reads": "reads_per_token", "passes": "passes_per_token", "hit rate": "hit_rate",
}  # fmt: skip


def print_speeds(result: dict[str, Any]) -> None:
    """One row per setting."""
    print(f"this: {result['this']}\nother: {result['other']}")
    print(f"{result['routing']}; {result['rounds']} rounds, medians (quartiles)")
    heads = ("cached", "window", "tok/s", "other", "ratio", "of serial", "other", "of resident", "other")
    rows = []
    for row in result["rows"]:
        this, other = row["this"], row["other"]
        shares = [_show(side[name]) for name in ("share_of_serial", "share_of_resident") for side in (this, other)]
        speeds = [_show(side["decode_tok_s"], 1) for side in (this, other)]
        rows.append([f"{row['cached']:.1%}", row["window"], *speeds, _show(row["ratio"]), *shares])
    _print(heads, rows)


def print_setting(row: dict[str, Any]) -> None:
    """Milliseconds of a token in one setting: by the engine's counters, and by samples if there are any."""
    low, middle, high = row["io_gbps"]
    print(
        f"{row['cached']:.1%} cached, window {row['window']}, {row['mode']}: {_show(row['ratio'])} of the other's speed;",
        end="",
    )
    print(f" plain reads {middle:.2f} GB/s ({low:.2f} .. {high:.2f})")
    other, this = row["other"], row["this"]
    rows = [[text, *(f"{side['ms_per_token'][part]:.2f}" for side in (other, this))] for part, text in PARTS.items()]
    places = sorted({**other["samples_ms"], **this["samples_ms"]}, key=lambda p: -other["samples_ms"].get(p, 0))
    rows += [
        [f"sampled: {place}", *(f"{side['samples_ms'].get(place, 0):.2f}" for side in (other, this))] for place in places
    ]
    rows += [[text, *(_count(side[name]) for side in (other, this))] for text, name in COUNTS.items()]
    _print(("ms", "other", "this"), rows)
    print(flush=True)


def print_bookkeeping(measured: Sequence[dict[str, Any]]) -> None:
    """One row per number of misses."""
    if measured:
        print("\nbookkeeping, us per layer and token, without the wait for reads")
        rows = [[str(r["misses"]), *(_show(r[n], 1) for n in ("other_us", "this_us")), _show(r["ratio"])] for r in measured]
        _print(("misses", "other", "this", "ratio"), rows)


def _print(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _show(figure: Sequence[float], digits: int = 2) -> str:
    low, middle, high = figure
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
