"""bench decode: decoding at several cache sizes against the resident model and both ceilings, in one run."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..judge import Judge
from ..knobs import GB, Knobs
from . import Arm, drop_cache, in_turns, plain_reads, ratios


def bench_decode(
    model: Path, knobs: Knobs, judge: Judge, *, rounds: int, cached: list[float], resident: bool
) -> dict[str, Any]:
    """Decode the judge's continuations at several cached shares, in turns with the resident model.

    Serial ceiling: 1 / (io + compute), overlapped 1 / max(io, compute); compute is the resident model's time a token, io
    the bytes read over the bandwidth of plain reads in this run (or the one that `ssd_gbps` holds).
    """
    from ..engine import Engine, load
    from ..plan import footprint

    sizes = footprint(model, knobs)
    engines: dict[str, Engine] = {}
    if resident:
        lossy = {name: getattr(knobs, name) for name in ("expert_bits", "cold_bits", "hot_share")}
        engines["resident"] = load(model, Knobs(**lossy))
    for share in cached:
        cache_gb = max(sizes.one_token_gb, share * sizes.all_experts_gb)
        engines[f"{share:.1%}"] = load(model, Knobs.from_mapping({**knobs.as_dict(), "cache_gb": cache_gb}))
    results: dict[str, list[Any]] = {name: [] for name in engines}

    def turn(name: str) -> float:
        engine = engines[name]
        measurement = engine.measure(judge)
        results[name].append((measurement, engine.stats.passes, engine.stats.windows))
        return measurement.decode_tok_s

    arms = [Arm(name, functools.partial(turn, name)) for name in engines]
    in_turns(arms, rounds)
    source = Checkpoint.open(model)
    plain = Arm("plain", lambda: _timed_plain(source.files, knobs))
    in_turns([plain], 3)
    gbps = knobs.ssd_gbps or plain.median
    base = arms[0] if resident else None
    rows = []
    for arm in arms:
        measurement, passes, windows = results[arm.name][-1]
        row: dict[str, Any] = {
            "cached": arm.name, "decode_tok_s": arm.median, "quartiles": arm.quartiles, "hit_rate": measurement.hit_rate,
            "bytes_per_token": measurement.bytes_per_token, "passes_per_window": passes / windows if windows else None,
        }  # fmt: skip
        if base is not None:
            row["share_of_resident"] = ratios(arm, base)
            compute, io = 1 / base.median, measurement.bytes_per_token / GB / gbps
            row["share_of_serial"] = arm.median * (io + compute)
            row["share_of_overlapped"] = arm.median * max(io, compute)
        rows.append(row)
    for engine in engines.values():
        engine.close()
    _print_decode(rows, gbps, knobs)
    return {"bench": "decode", "model": source.architecture, "io_gbps": gbps, "knobs": knobs.as_dict(), "rows": rows}


def _print_decode(rows: list[dict[str, Any]], gbps: float, knobs: Knobs) -> None:
    from rich.console import Console
    from rich.table import Table

    held = "held by ssd_gbps" if knobs.ssd_gbps else "plain reads in this run"
    table = Table(title=f"decode; io ceiling {gbps:.2f} GB/s ({held})", box=None)
    for name in ("cached", "tok/s", "of resident", "of 1/(io+compute)", "of 1/max", "hit", "passes"):
        table.add_column(name, justify="right")
    for row in rows:
        share = row.get("share_of_resident")
        table.add_row(
            row["cached"],
            f"{row['decode_tok_s']:.1f} ({row['quartiles'][0]:.1f} .. {row['quartiles'][1]:.1f})",
            f"{share[0]:.2f} ({share[1]:.2f} .. {share[2]:.2f})" if share else "-",
            f"{row['share_of_serial']:.2f}" if share else "-",
            f"{row['share_of_overlapped']:.2f}" if share else "-",
            "-" if row["hit_rate"] is None else f"{row['hit_rate']:.3f}",
            "-" if row["passes_per_window"] is None else f"{row['passes_per_window']:.2f}",
        )
    Console().print(table)


def _timed_plain(files: tuple[Path, ...], knobs: Knobs) -> float:
    if knobs.io_mode == "direct":
        drop_cache(files)
    begin = time.perf_counter()
    return plain_reads(files, knobs, 256 << 20) / (time.perf_counter() - begin) / GB
