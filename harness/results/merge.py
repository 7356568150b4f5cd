"""Merging: the rows of several folders, files or machines become one set, each row once.

A row keeps its `row_id` and its study. If two sets use one trial number for different settings, the later set's trial gets a
new number. If both have a run of one trial under the same number (each machine measures the sentinel), the later set's run
gets the next free number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine import Knobs
from engine.checkpoint.fingerprint import another
from engine.measure.protocol import PREFILLED
from harness import ResultsError

from .metrics import OBJECTIVES
from .older import keeps_median_speed
from .parquet import TOKENS_SCHEMA, write_table
from .rows import in_order, read_table

SETTING = (*Knobs.names(), "removed_knobs")  # these are the same in all rows of a trial
COMMON = {
    "eval_fingerprint": "sets of evaluation texts", "model_fingerprint": "models", "objectives": "sets of objectives",
    "state": "states of the experts' cache",
}  # fmt: skip


def merge(places: Sequence[Path], *, mixed_machines: bool = False) -> pa.Table:
    """The rows of all places (folders of studies or .parquet files), by trial, then run.

    Raises `ResultsError` if the rows differ in evaluation texts, model, objectives or the state of the experts' cache, and
    if they come from different kinds of machine unless `mixed_machines`: their speeds are not comparable.
    """
    sets = []
    for place in places:
        table = read_table(place)
        if not table.num_rows:
            raise ResultsError(f"{place} has no trials; give the folder of a study or a .parquet file")
        sets.append(table)
    _check(pa.concat_tables(sets), mixed_machines)
    return in_order(_renumbered(sets))


def write_merged(out: Path, places: Sequence[Path], *, mixed_machines: bool = False) -> pa.Table:
    """Merge `places` into `out`, a new or empty folder, or a new .parquet file (without tokens). Returns the rows."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ResultsError(f"{out} exists already and is not overwritten; give another name")
    rows = merge(places, mixed_machines=mixed_machines)
    try:
        (out.parent if out.suffix == ".parquet" else out).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResultsError(f"{out} cannot be created ({e.strerror}); give another place") from e
    if out.suffix == ".parquet":
        write_table(out, rows)
        return rows
    tokens = _tokens(places, rows)
    if tokens.num_rows:
        write_table(out / "tokens.parquet", tokens)
    write_table(out / "trials.parquet", rows)
    return rows


def _check(rows: pa.Table, mixed_machines: bool) -> None:
    found = {name: set(rows[name].to_pylist()) - {None} for name in ("eval_fingerprint", "model_fingerprint")}
    found["state"] = {state or PREFILLED for state in rows["state"].to_pylist()}
    found["objectives"] = {o or ",".join(OBJECTIVES) for o in rows["objectives"].to_pylist()}
    for name, values in found.items():
        if len(values) > 1:
            words = _models(rows, values) if name == "model_fingerprint" else sorted(values)
            raise ResultsError(
                f"rows of {len(values)} {COMMON[name]} ({'; '.join(words)}) are not comparable; merge the rows of one"
            )
    if keeps_median_speed(rows):
        raise ResultsError(
            "rows of version 2 without their token times have a median of blocks in decode_tok_s, newer rows have tokens "
            "over time; merge only one kind, or give the study of version 2 with its tokens.parquet"
        )
    kinds = _machine_kinds(rows)
    if len(kinds) > 1 and not mixed_machines:
        raise ResultsError(
            f"rows of {len(kinds)} kinds of machine ({'; '.join(kinds)}) are not comparable in speed; "
            "--mixed-machines merges them anyway"
        )


def _machine_kinds(rows: pa.Table) -> list[str]:
    """The kinds of machine: processor, cores and, if it computes, GPU."""
    machines = zip(*(rows[name].to_pylist() for name in ("cpu", "cores", "device", "backend")), strict=True)
    return sorted({
        f"{cpu}, {cores} cores" + (f", {device}" if backend not in (None, "cpu") else "")
        for cpu, cores, device, backend in machines if cpu is not None
    })  # fmt: skip


def _models(rows: pa.Table, fingerprints: set[str]) -> list[str]:
    """Name and fingerprint of each model, and how their fingerprints may differ for one model."""
    names = dict(zip(rows["model_fingerprint"].to_pylist(), rows["model"].to_pylist(), strict=True))
    first, *others = sorted(fingerprints)
    hints = {another(first, other) for other in others} - {"another model"}
    return [*(f"{names[f]} {f}" for f in (first, *others)), *hints]


def _renumbered(sets: Sequence[pa.Table]) -> pa.Table:
    """All rows once, with one setting for each trial number and one row for each of its runs.

    `quality_from_trial` gets the new number of its trial. The sequence numbers of a later set follow those before.
    """
    free = itertools.count(1 + max(pc.max(table["trial"]).as_py() for table in sets))
    trials: dict[str, int] = {}  # row_id -> trial number, of the rows merged so far
    settings: dict[int, tuple[object, ...]] = {}
    runs: dict[int, set[int]] = {}
    ahead = 0  # sequence numbers of the sets so far
    merged = []
    for table in sets:
        rows = table.select(["row_id", "trial", "run", *SETTING]).to_pylist()
        number = {row["trial"]: trials[row["row_id"]] for row in rows if row["row_id"] in trials}
        for row in rows:
            setting = tuple(row[name] for name in SETTING)
            old = row["trial"]
            if old not in number:
                number[old] = old if settings.get(old, setting) == setting else next(free)
            settings.setdefault(number[old], setting)
        fresh = [row["row_id"] not in trials for row in rows]
        trials.update({row["row_id"]: number[row["trial"]] for row in rows})
        run = {}
        for row in sorted((row for row, new in zip(rows, fresh, strict=True) if new), key=lambda row: row["run"]):
            taken = runs.setdefault(number[row["trial"]], set())
            run[row["row_id"]] = row["run"] if row["run"] not in taken else 1 + max(taken)
            taken.add(run[row["row_id"]])
        for name in ("sequence", "drift_sequence"):
            table = _replaced(table, name, [None if v is None else v + ahead for v in table[name].to_pylist()])
        ahead = max(ahead, pc.max(table["sequence"]).as_py() or 0)
        for name in ("trial", "quality_from_trial"):
            table = _replaced(table, name, [number.get(value, value) for value in table[name].to_pylist()])
        table = _replaced(table, "run", [run.get(row["row_id"], row["run"]) for row in rows])
        merged.append(table.filter(pa.array(fresh)))
    return pa.concat_tables(merged)


def _replaced(table: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    """The table with other values in a column."""
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def _tokens(places: Sequence[Path], rows: pa.Table) -> pa.Table:
    """The tokens of the merged rows, each once, with the rows' trial and run numbers."""
    wanted = rows.select(["row_id", "trial", "run"])
    taken = []
    for place in (p for p in places if p.is_dir()):
        tokens = read_table(place, "tokens").drop_columns(["trial", "run"]).join(wanted, "row_id", join_type="inner")
        taken.append(tokens.select(["row_id", "trial", "run", "token", "wall_ms"]))
        wanted = wanted.filter(pc.invert(pc.is_in(wanted["row_id"], tokens["row_id"].unique())))
    table = pa.concat_tables(taken).cast(TOKENS_SCHEMA) if taken else TOKENS_SCHEMA.empty_table()
    return table.sort_by([(name, "ascending") for name in ("trial", "run", "row_id", "token")])
