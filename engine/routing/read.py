"""Read: routing traces from Parquet into arrays, from this engine (`engine.routing.record`) or another one.

One row per routed slot: `token`, `phase` (prefill | decode), `layer`, `rank`, `expert`; other columns are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from engine.errors import HeadraceError, first_line

COLUMNS = ("token", "phase", "layer", "rank", "expert")


@dataclass(frozen=True)
class Trace:
    """Chosen experts, int32 [tokens, layers, top-k]. The first `prefilled` tokens are a prompt.

    Some engines do not compute a prompt's last layer; its experts are then -1.
    """

    path: Path
    experts: np.ndarray
    prefilled: int

    @property
    def shape(self) -> str:
        tokens, layers, top_k = self.experts.shape
        return f"{tokens} tokens, {layers} layers, top-{top_k}, experts up to {self.experts.max()}"


def read_trace(path: str | Path) -> Trace:
    """Read a trace. Raises `HeadraceError` for a file that is not one, or that lacks or repeats a slot."""
    path = Path(path)
    try:
        rows = pd.read_parquet(path, columns=list(COLUMNS))
    except (OSError, ValueError) as e:
        raise HeadraceError(f"trace {path} cannot be read ({first_line(e)}); give Parquet with {', '.join(COLUMNS)}") from e
    rows = rows[rows["token"] >= 0]  # without a measurement's warm-up
    codes = {name: np.unique(rows[name], return_inverse=True) for name in ("token", "layer", "rank")}
    shape = tuple(len(values) for values, _ in codes.values())
    experts = np.full(shape, -1, np.int32)
    experts[tuple(at for _, at in codes.values())] = rows["expert"]
    prefilled = int(rows.loc[rows["phase"] == "prefill", "token"].nunique())
    decoded = np.sort(experts[prefilled:], axis=-1)
    if not decoded.size or (decoded < 0).any() or (np.diff(decoded, axis=-1) == 0).any() or rows.duplicated().any():
        raise HeadraceError(
            f"trace {path}: its {len(decoded)} decoded tokens do not have {shape[2]} different experts in each of "
            f"{shape[1]} layers; record it again"
        )
    return Trace(path, experts, prefilled)


def overlap(trace: Trace) -> float:
    """Return the share of the decoded tokens' experts that the layer also chose for the token before."""
    first = max(trace.prefilled, 1)
    same = (trace.experts[first:, :, :, None] == trace.experts[first - 1 : -1, :, None, :]).any(axis=-1)
    return float(same.mean())
