"""Merge the rows of several folders or machines into one set, each row once.

    python -m harness.merge OUT W1/demo W2/demo

IN are folders of studies or .parquet files; OUT is a new folder (then the tokens come along, and `python -m harness.report
OUT` reads it) or a new .parquet file. A row keeps its `row_id` and its study. Where two sets use one trial number for
different settings, the later set's trial gets a new number; where both have a run of one trial under the same number (each
machine measures the sentinel), the later set's run gets the next. Rows of different judges, models or
objectives are refused, and so are different kinds of machine (processor, cores) unless --mixed-machines: their speeds are
not comparable.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine import HeadraceError, Knobs
from engine.checkpoint.fingerprint import another
from harness import ResultsError
from harness.results.columns import OBJECTIVES
from harness.results.rows import TOKENS_SCHEMA, read_table, write_table

ALIKE = {"judge": "judges", "model_fingerprint": "models", "objectives": "sets of objectives"}  # what all rows must share
SETTING = (*Knobs.names(), "removed_knobs")  # what rows of one trial share


def merge(places: Sequence[Path], *, mixed_machines: bool = False) -> pa.Table:
    """The rows of all places by trial, then run. Raises `ResultsError` if they are not comparable."""
    sets = []
    for place in places:
        table = read_table(place)
        if not table.num_rows:
            raise ResultsError(f"{place} holds no trials; give the folder of a study or a .parquet file")
        sets.append(table)
    _check(pa.concat_tables(sets), mixed_machines)
    return _renumbered(sets).sort_by([(name, "ascending") for name in ("trial", "run", "row_id")])


def _check(rows: pa.Table, mixed_machines: bool) -> None:
    said = {name: set(rows[name].to_pylist()) - {None} for name in ("judge", "model_fingerprint")}
    said["objectives"] = {o or ",".join(OBJECTIVES) for o in rows["objectives"].to_pylist()}
    for name, values in said.items():
        if len(values) > 1:
            words = _called(rows, values) if name == "model_fingerprint" else sorted(values)
            raise ResultsError(
                f"rows of {len(values)} {ALIKE[name]} ({'; '.join(words)}) are not comparable; merge those of one"
            )
    kept = pc.and_(pc.equal(rows["schema_version"], 2), pc.equal(rows["decode_tok_s"], rows["steady_tok_s"]))
    if pc.any(kept).as_py() and pc.max(rows["schema_version"]).as_py() > 2:
        raise ResultsError(
            "rows of version 2 whose tokens are gone have another speed in decode_tok_s (a median of stretches) than newer "
            "ones; merge the ones or the others, or give the study of version 2 with its tokens.parquet"
        )
    machines = zip(*(rows[name].to_pylist() for name in ("cpu", "cores", "device", "backend")), strict=True)
    kinds = sorted({
        f"{cpu}, {cores} cores" + (f", {device}" if backend not in (None, "cpu") else "")
        for cpu, cores, device, backend in machines if cpu is not None
    })  # fmt: skip
    if len(kinds) > 1 and not mixed_machines:
        raise ResultsError(
            f"rows of {len(kinds)} kinds of machine ({'; '.join(kinds)}): their speeds are not comparable; "
            "--mixed-machines merges them all the same"
        )


def _called(rows: pa.Table, prints: set[str]) -> list[str]:
    """The models of these fingerprints with their names, and whether they may be one after all."""
    names = dict(zip(rows["model_fingerprint"].to_pylist(), rows["model"].to_pylist(), strict=True))
    first, *others = sorted(prints)
    said = {another(first, other) for other in others} - {"another model"}
    return [*(f"{names[p]} {p}" for p in (first, *others)), *said]


def _renumbered(sets: Sequence[pa.Table]) -> pa.Table:
    """All rows once, each trial number with one setting, each run of it with one row; `quality_of` follows its trial."""
    free = itertools.count(1 + max(pc.max(table["trial"]).as_py() for table in sets))
    trials: dict[str, int] = {}  # of each row merged so far
    settings: dict[int, tuple[object, ...]] = {}
    runs: dict[int, set[int]] = {}
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
        for name in ("trial", "quality_of"):
            values = [number.get(value, value) for value in table[name].to_pylist()]
            field = table.schema.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        values = [run.get(row["row_id"], row["run"]) for row in rows]
        place = table.schema.get_field_index("run")
        table = table.set_column(place, table.schema.field(place), pa.array(values, pa.int64()))
        merged.append(table.filter(pa.array(fresh)))
    return pa.concat_tables(merged)


def write_merged(out: Path, places: Sequence[Path], *, mixed_machines: bool = False) -> pa.Table:
    """Merge into `out`, which must not be there yet (an empty folder may be); returns the rows."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ResultsError(f"{out} exists already and is not overwritten; give another name")
    rows = merge(places, mixed_machines=mixed_machines)
    try:
        (out.parent if out.suffix == ".parquet" else out).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResultsError(f"{out} cannot be made ({e.strerror}); give another place") from e
    if out.suffix == ".parquet":
        write_table(out, rows)
        return rows
    tokens = _tokens(places, rows)
    if tokens.num_rows:
        write_table(out / "tokens.parquet", tokens)
    write_table(out / "trials.parquet", rows)
    return rows


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


def main(arguments: Sequence[str]) -> int:
    """Merge as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m harness.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a new .parquet file")
    parser.add_argument("places", type=Path, nargs="+", metavar="IN", help="folder of a study, or a .parquet file")
    parser.add_argument("--mixed-machines", action="store_true", help="rows of several kinds of machine all the same")
    given = parser.parse_args(arguments)
    try:
        places = [place.expanduser() for place in given.places]
        rows = write_merged(out := given.out.expanduser(), places, mixed_machines=given.mixed_machines)
    except HeadraceError as e:
        print(e, file=sys.stderr)
        return 2
    machines = rows.group_by(["machine", "cpu", "cores"]).aggregate([([], "count_all")]).sort_by("machine").to_pylist()
    for m in machines:
        print(f"{m['count_all']:>6} rows  machine {m['machine']} ({m['cpu']}, {m['cores']} cores)")
    print(f"{rows.num_rows:>6} rows  in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
