"""Older versions: what turns rows of schema versions 1 to 5 into rows of the current version as they are read.

Files are never rewritten for this. `docs/results.md` describes the versions and prints `RENAMED`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from engine.knobs import REMOVED
from harness.numerics.speed_interval import speeds

RENAMED = {  # name in versions 1 to 3 -> name since version 4
    "quality": "eval_texts",
    "judge": "eval_fingerprint",
    "quality_of": "quality_from_trial",
    "void_layers": "rejected_layers",
    "foreseen_share": "window_prediction_recall",
    "prefetch_whole_set": "prefetch_exact_set",
}
RENAMED_IN = 4
NEUTRAL = {  # removed knob -> value without effect in versions 1 to 3; null has none either
    "prefetch_cap_mb": None, "bits_by": "expert", "gate_exponent": 0.0, "error_exponent": 0.0, "cold_lowbit": 0.0,
    "lowbit_share": 0.25,
}  # fmt: skip
LFU_HALF_LIFE = 1e9  # stands for a half-life that was infinite
CHUNK_CHOSEN_IN = 6  # the version in which `prefill_chunk` may be 0, and another column has the chunk that ran
FILLED = {"run": 0, "round": 1}  # version 1 had one run a trial and one round
SPEED_COLUMNS = ("decode_tok_s", "decode_tok_s_low", "decode_tok_s_high", "steady_tok_s")


def current_names(names: Sequence[str], version: int) -> list[str]:
    """The current names of a file's columns."""
    return [RENAMED.get(name, name) for name in names] if version < RENAMED_IN else list(names)


def fill(table: pa.Table, schema: pa.Schema, version: int) -> pa.Table:
    """The table with exactly the columns of `schema`. A column that its version lacks is null, but `FILLED` and `row_id`."""
    n, known = table.num_rows, set(table.column_names)
    columns = {f.name: table[f.name].cast(f.type) if f.name in known else pa.nulls(n, f.type) for f in schema}
    if "removed_knobs" in columns and "removed_knobs" not in known:
        columns["removed_knobs"] = _removed_knobs(table)
    for name, value in {**FILLED, "schema_version": version}.items():
        if name in columns:
            columns[name] = pc.fill_null(columns[name], value)
    if version < CHUNK_CHOSEN_IN and {"prefill_chunk", "prefill_chunk_used"} <= columns.keys():
        columns["prefill_chunk_used"] = pc.coalesce(columns["prefill_chunk_used"], columns["prefill_chunk"])
    if columns["row_id"].null_count:
        columns["row_id"] = pc.coalesce(columns["row_id"], _row_ids(columns))
    return pa.Table.from_arrays([_finite(name, column) for name, column in columns.items()], schema=schema)


def _finite(name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column with null for numbers that are not finite, which rows could have before version 4 or from other writers. A
    knob that was infinite has `LFU_HALF_LIFE`."""
    if not pa.types.is_floating(column.type) or pc.all(pc.is_finite(column)).as_py() in (True, None):
        return column
    other = pa.nulls(len(column), column.type)
    if name == "evict_half_life":
        other = pc.if_else(pc.equal(column, float("inf")), pa.scalar(LFU_HALF_LIFE, column.type), other)
    return pc.if_else(pc.is_finite(column), column, other)


def _removed_knobs(table: pa.Table) -> pa.Array:
    """The removed knobs, and removed values of knobs, that had an effect in each row; null where none had."""
    texts = []
    for row in table.select([name for name in ("trial", *NEUTRAL, "prefetch") if name in table.column_names]).to_pylist():
        active = {k: v for k, v in row.items() if k in NEUTRAL and v is not None and v != NEUTRAL[k]}
        if f"prefetch={row.get('prefetch')}" in REMOVED:
            active["prefetch"] = row["prefetch"]
        texts.append(" ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in active.items()) or None)
    return pa.array(texts, pa.string())


def _row_ids(columns: Mapping[str, pa.Array]) -> pa.Array:
    """Identifiers of rows of version 1, which had none: the same row has the same one at every reading."""
    values = zip(*(columns[name].to_pylist() for name in ("study", "machine", "trial", "run", "started_at")), strict=True)
    return pa.array(["v1-" + hashlib.sha256(repr([str(x) for x in row]).encode()).hexdigest()[:29] for row in values])


def lacks_mean_speed(rows: pa.Table) -> pa.Array:
    """Which rows are of version 2 with the median of blocks in `decode_tok_s`: bool (rows).

    A row without an interval has the speed of an engine that gives no token times, and is right as it is.
    """
    old = pc.and_(pc.equal(rows["schema_version"], 2), pc.is_valid(rows["decode_tok_s_low"]))
    return pc.and_(old, pc.is_null(rows["steady_tok_s"]))


def with_mean_speed(rows: pa.Table, old: pa.Array, tokens: pa.Table) -> pa.Table:
    """Rows whose `decode_tok_s` is tokens over time and whose `steady_tok_s` is the median, for the rows marked in `old`.

    `tokens` are their token times. A row without them keeps the median in both columns.
    """
    runs = tokens.sort_by("token").group_by("row_id", use_threads=False).aggregate([("wall_ms", "list")])
    times = dict(zip(runs["row_id"].to_pylist(), runs["wall_ms_list"].to_pylist(), strict=True))
    figures = rows.select(["row_id", *SPEED_COLUMNS]).to_pylist()
    for row in itertools.compress(figures, old.to_pylist()):
        median = row["decode_tok_s"]
        row |= {**(speeds(times[row["row_id"]]) if row["row_id"] in times else {}), "steady_tok_s": median}
    for name in SPEED_COLUMNS:
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), pa.array([row[name] for row in figures], pa.float64()))
    return rows


def keeps_median_speed(rows: pa.Table) -> bool:
    """Whether newer rows are mixed with rows of version 2 whose `decode_tok_s` is a median, for lack of token times."""
    kept = pc.and_(pc.equal(rows["schema_version"], 2), pc.equal(rows["decode_tok_s"], rows["steady_tok_s"]))
    return bool(pc.any(kept).as_py()) and pc.max(rows["schema_version"]).as_py() > 2


def renamed_markdown() -> str:
    """The table of renamed columns in `docs/results.md`."""
    lines = ["| versions 1 to 3 | since version 4 |", "|---|---|"]
    return "\n".join(lines + [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()])
