"""A plan of bits on file: Parquet, one row a projection of an expert, so that any tool can read it.

Columns: layer (int16, numbered as the layers with experts are, from 0), expert (int16), projection, bits (uint8),
importance (float64). Key-value metadata: the model's name and fingerprint, the knobs and the routing that the plan was made
from, and the plan's own fingerprint, by which a damaged file is known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.fingerprint import another
from engine.errors import HeadraceError, KnobError, first_line
from engine.knobs import BITS, LOSSY, Knobs
from engine.system import atomic

from .bits import BitsPlan, weights_of, widths

FORMAT = "headrace bits 1"
MAKE = "make one with python -m engine plan --out"


def save_plan(path: str | Path, plan: BitsPlan, checkpoint: Checkpoint, knobs: Knobs, routing: str | None) -> None:
    """Write `plan`, computed from `knobs` and the routing of that fingerprint. Raises `HeadraceError` if it cannot be."""
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
        "knobs": json.dumps({name: getattr(knobs, name) for name in LOSSY}), "routing": routing or "",
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
    """Read a plan back. Raises `KnobError` for a file that is none or damaged, a plan for another model, and widths that
    this one does not have."""
    import pyarrow.parquet as pq

    said = f"bits_plan={path}"
    try:
        table = pq.read_table(Path(path).expanduser())
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format', 'not said')!s:.40}, not {FORMAT}")
        of, name = metadata["model_fingerprint"], metadata["model"]
        rows: dict[str, Any] = {c: table[c].to_numpy() for c in ("layer", "expert", "projection", "bits", "importance")}
    except Exception as e:  # pyarrow raises what comes of damaged bytes
        raise KnobError(f"{said} is no saved plan ({first_line(e)}); {MAKE}") from e
    if of != checkpoint.fingerprint:
        raise KnobError(
            f"{said} is for {another(of, checkpoint.fingerprint)}, {name} ({of}), not {checkpoint.name} "
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
        raise KnobError(f"{said} is damaged: it has rows of what the model has not ({first_line(e)}); {MAKE}") from e
    plan = BitsPlan(bits, importance, weights)
    missing = int(((bits == 0) & (weights > 0)).sum())
    if missing or len(layer) != np.count_nonzero(weights) or plan.digest != metadata.get("plan_fingerprint"):
        raise KnobError(f"{said} is damaged: its rows are not those that were saved ({missing} are missing); {MAKE}")
    _check_widths(said, plan, checkpoint)
    return plan


def _check_widths(said: str, plan: BitsPlan, checkpoint: Checkpoint) -> None:
    own = widths(checkpoint, None)
    legal = BITS if checkpoint.levels is None else checkpoint.levels
    wrong = (plan.bits != own) & ~(np.isin(plan.bits, legal) & (plan.bits < own))
    if wrong.any():
        number = int(np.argwhere(wrong)[0][0])
        raise KnobError(
            f"{said} has {plan.bits[wrong][0]} bits in layer {number}, which {checkpoint.name} does not have to give "
            f"({', '.join(map(str, legal))}, at most {own[wrong][0]}); {MAKE}"
        )
    for number, layer in enumerate(checkpoint.layers):
        found = len(np.unique(plan.bits[number, : layer.experts], axis=0))
        if found > 2:
            raise KnobError(f"{said} has experts of {found} kinds of width in layer {number}; at most 2 can be; {MAKE}")
