"""bench lossy: what the lossy run-time knobs save in reads and cost in quality, one at a time.

By default every token is computed alone, including the prompts (`prefill_chunk=1`). In a large prefill chunk some token uses
nearly every expert, so that knobs that depend on the cache have little effect there, and quality over mostly prompt tokens
would not show their effect on decoding.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import Knobs
from engine.measure.judge import Judge
from engine.plan.footprint import weights_of

CACHED = 0.25  # share of all experts, if cache_gb is not given


def bench_lossy(model: Path, given: dict[str, Any], judge: Judge, *, trust_code: bool = False) -> dict[str, Any]:
    """One measurement per setting, each from an empty cache, with the knobs in `given`. `read_mb_per_token` and the shares
    cover the decoded tokens; perplexity and nll cover all scored tokens. `nll_more`: nll minus that of the first setting."""
    from engine.engine import load

    source = Checkpoint.open(model)
    defaults = {"cache_gb": CACHED * weights_of(source, Knobs()).all_experts_gb, "prefill_chunk": 1}
    knobs = Knobs.from_mapping(defaults | given)
    rows: list[dict[str, Any]] = []
    for setting in settings(source.top_k):
        wanted = Knobs.from_mapping({**knobs.as_dict(), **setting})
        with load(model, wanted, trust_code=trust_code) as engine:
            m: Any = engine.measure(judge)  # complete: no field is None
            uses = m.decode_tokens * len(source.layers) * engine.checkpoint.top_k
        rows.append({
            **setting, "read_mb_per_token": m.bytes_per_token / 1e6, "hit_rate": m.hit_rate,
            "dropped_share": m.dropped_share, "swapped_share": m.swapped / uses, "perplexity": m.perplexity,
            "nll_more": m.nll - (rows[0]["nll"] if rows else m.nll), "nll": m.nll, "decode_tok_s": m.decode_tok_s,
        })  # fmt: skip
    result = {
        "bench": "lossy", "model": source.name, "mode": m.mode, "cached_share": m.cached_share,
        "eval_fingerprint": judge.fingerprint, "scored_tokens": m.scored_tokens, "decode_tokens": m.decode_tokens,
        "knobs": knobs.as_dict(), "rows": rows,
    }  # fmt: skip
    _print(result)
    return result


def settings(top_k: int) -> list[dict[str, float]]:
    """No knob, then one knob at a time, then the two cache-dependent ones together."""
    alone: dict[str, list[float]] = {
        "cold_drop": [0.25, 0.5, 0.75, 1.0],
        "cache_prior": [0.1, 0.3, 0.5, 1.0],
        "top_k": list(range(top_k - 1, (top_k - 1) // 2, -1)),
        "resident_bits": [8, 4],
    }
    together = {"cold_drop": 0.5, "cache_prior": 0.3}
    return [{}, *({name: value} for name, values in alone.items() for value in values), together]


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"{result['model']}, {result['mode']}, {result['cached_share']:.1%} of the experts cached")
    table = Table(box=None)
    table.add_column("setting", no_wrap=True)
    for name in ("MB/token", "hit rate", "left out", "swapped", "perplexity", "nll", "tok/s"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        setting = " ".join(f"{name}={row[name]:g}" for name in Knobs.names() if name in row)
        shares = (f"{row[name]:.1%}" for name in ("dropped_share", "swapped_share"))
        quality = f"{row['perplexity']:.3f}", f"{row['nll_more']:+.4f}"
        reads = f"{row['read_mb_per_token']:.3f}", f"{row['hit_rate']:.3f}"
        table.add_row(setting or "none", *reads, *shares, *quality, f"{row['decode_tok_s']:.1f}")
    console.print(table)
