"""Bits file: a plan of bits as Parquet, one row per projection of an expert, so that any tool can read it.

Columns: layer (int16, counting layers with experts from 0), expert (int16), projection, bits (uint8), importance (float64).
Key-value metadata: the model's name and fingerprint, the knobs and the routing that the plan was computed from, and the
plan's own fingerprint, which detects a damaged file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.fingerprint import another
from engine.errors import HeadraceError, KnobError, first_line
from engine.knobs import BITS, LOSSY, Knobs
from engine.system import atomic
from engine.system.strict_json import to_json

from .bits import BitsPlan, weights_of, widths

FORMAT = "headrace bits 1"
MAKE = "make one with python -m engine plan --out"


def save_plan(path: str | Path, plan: BitsPlan, checkpoint: Checkpoint, knobs: Knobs, routing: str | None) -> None:
    """Write `plan`, computed from `knobs` and the routing with that fingerprint. Raises `HeadraceError` on failure."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path).expanduser()
    layer, expert, projection = places = np.nonzero(plan.weights)
    names = np.array([[*one.projections, *[""] * (plan.bits.shape[2] - len(one.projections))] for one in checkpoint.layers])
    columns = {
        "layer": layer.astype(np.int16), "expert": expert.astype(np.int16), "projection": names[layer, projection],
        "bits": plan.bits[places], "importance": plan.importance[places],
    }  # fmt: skip
    metadata = {
        "format": FORMAT, "model": checkpoint.name, "model_fingerprint": checkpoint.fingerprint,
        "knobs": to_json({name: getattr(knobs, name) for name in LOSSY}), "routing": routing or "",
        "plan_fingerprint": plan.digest,
    }  # fmt: skip
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with atomic.replacing(path) as partial:
            pq.write_table(pa.table(columns).replace_schema_metadata(metadata), partial, compression="zstd")
    except OSError as e:
        raise HeadraceError(f"the plan {path} cannot be written ({e.strerror or first_line(e)}); choose another file") from e


def load_plan(path: str | Path, checkpoint: Checkpoint) -> BitsPlan:
    """Read a plan. Raises `KnobError` for a file that is not a plan or is damaged, and a plan for another model."""
    import pyarrow.parquet as pq

    named = f"bits_plan={path}"
    try:
        table = pq.read_table(Path(path).expanduser())
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format', 'missing')!s:.40}, not {FORMAT}")
        of, name = metadata["model_fingerprint"], metadata["model"]
        rows: dict[str, Any] = {c: table[c].to_numpy() for c in ("layer", "expert", "projection", "bits", "importance")}
    except Exception as e:  # damaged bytes raise almost anything in pyarrow
        raise KnobError(f"{named} is not a saved plan ({first_line(e)}); {MAKE}") from e
    if of != checkpoint.fingerprint:
        raise KnobError(
            f"{named} is for {another(of, checkpoint.fingerprint)}, {name} ({of}), not {checkpoint.name} "
            f"({checkpoint.fingerprint}); {MAKE}"
        )
    weights = weights_of(checkpoint)
    bits, importance = np.zeros(weights.shape, np.uint8), np.zeros(weights.shape)
    numbers = [{name: number for number, name in enumerate(layer.projections)} for layer in checkpoint.layers]
    try:
        layer, expert = (rows[name].astype(np.int64) for name in ("layer", "expert"))
        places = layer, expert, np.array([numbers[one][p] for one, p in zip(layer, rows["projection"], strict=True)], int)
        bits[places], importance[places] = rows["bits"], rows["importance"]
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as e:
        raise KnobError(f"{named} is damaged: it has rows that do not exist in the model ({first_line(e)}); {MAKE}") from e
    plan = BitsPlan(bits, importance, weights)
    missing = int(((bits == 0) & (weights > 0)).sum())
    if missing or len(layer) != np.count_nonzero(weights) or plan.digest != metadata.get("plan_fingerprint"):
        raise KnobError(f"{named} is damaged: its rows differ from those that were saved ({missing} are missing); {MAKE}")
    _check_widths(named, plan, checkpoint)
    return plan


def _check_widths(named: str, plan: BitsPlan, checkpoint: Checkpoint) -> None:
    own = widths(checkpoint, None)
    legal = BITS if checkpoint.levels is None else checkpoint.levels
    wrong = (plan.bits != own) & ~(np.isin(plan.bits, legal) & (plan.bits < own))
    if wrong.any():
        number = int(np.argwhere(wrong)[0][0])
        raise KnobError(
            f"{named} has {plan.bits[wrong][0]} bits in layer {number}, which {checkpoint.name} does not have "
            f"({', '.join(map(str, legal))}, at most {own[wrong][0]}); {MAKE}"
        )
    for number, layer in enumerate(checkpoint.layers):
        found = len(np.unique(plan.bits[number, : layer.experts], axis=0))
        if found > 2:
            raise KnobError(f"{named} has {found} widths in layer {number}, more than the 2 that are possible; {MAKE}")
