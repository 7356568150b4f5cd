"""Rows in Parquet: written whole or not at all, never changed, readable at any moment, each row once.

    df = pandas.read_parquet("results/demo/trials.parquet")     or, with its checks,    read_trials("results/demo")

A run's row lies in a part file of its own in `trials/` from the moment it is written. `trials.parquet` is replaced whole: it
holds all rows up to its last refresh, and at no moment fewer than before. The readers here look at both, so they miss no row
and see none twice, whatever another process writes or compacts meanwhile. The times of each run's tokens lie likewise in
`tokens/` and `tokens.parquet`. Writers hold a lock on `trials/` that dies with them.

A file under a name with a leading dot is not yet a row: pandas and pyarrow pass it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.knobs import REMOVED
from engine.system import atomic
from harness import ResultsError
from harness.numerics.speed_interval import speeds

from .columns import COLUMNS, NAMES, SCHEMA_VERSION, TOKEN_COLUMNS, schema_of
from .files import unwritable

if TYPE_CHECKING:
    import pandas as pd

SCHEMA, TOKENS_SCHEMA = schema_of(COLUMNS), schema_of(TOKEN_COLUMNS)
SCHEMAS = {"trials": SCHEMA, "tokens": TOKENS_SCHEMA}
# What older versions wrote for a removed knob that had no effect; null is another way to say it.
NEUTRAL = {
    "prefetch_cap_mb": None, "bits_by": "expert", "gate_exponent": 0.0, "error_exponent": 0.0, "cold_lowbit": 0.0,
    "lowbit_share": 0.25,
}  # fmt: skip
IDENTITY = ("row_id", "trial", "run", "round", "schema_version", "study", "machine", "started_at")
REFRESH_ROWS = 500  # rewriting so many rows is cheap beside a trial
LONGEST_BYTES = 8 << 20  # of a file that is replaced; then it begins anew
MAGIC = b"PAR1"  # how a Parquet file begins
ORPHAN_S = 60  # tokens without a row: older than this, their search has ended before it wrote the row


class DamagedError(ResultsError):
    """A Parquet file that is cut short or holds something else."""


def part_path(folder: Path, trial: int, run: int = 0, dataset: str = "trials") -> Path:
    """Where the row (or the tokens) of a run lies in a study's folder until it is compacted."""
    return folder / dataset / f"part-{trial:06d}-{run:02d}.parquet"


def write_row(folder: Path, row: Mapping[str, Any]) -> None:
    """Write a run's row so that a crash at any moment leaves either the whole file or none. All of `NAMES` are needed.

    A row that is there already (the same `row_id`) stays as it is. Raises `ResultsError` if its trial and run have another
    row, or if it cannot be written.
    """
    if set(row) != set(NAMES):
        raise KeyError(f"a row lacks or exceeds the columns by {sorted(set(row) ^ set(NAMES))}")
    table = _conformed(pa.Table.from_pylist([dict(row)], schema=SCHEMA), SCHEMA, SCHEMA_VERSION)
    _write_part(folder, "trials", table)


def write_tokens(folder: Path, row_id: str, trial: int, run: int, token_ms: Sequence[float]) -> None:
    """Write the wall times of a run's timed tokens, in ms. Call it before `write_row`: then each row has its tokens."""
    n = len(token_ms)
    columns = [[row_id] * n, [trial] * n, [run] * n, range(n), token_ms]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, TOKENS_SCHEMA, strict=True)]
    if n:
        _write_part(folder, "tokens", pa.Table.from_arrays(arrays, schema=TOKENS_SCHEMA))


def refresh(folder: Path) -> None:
    """Bring `trials.parquet` up to date, the parts stay: after each row at first, of 3,000 rows after every sixth."""
    whole = folder / "trials.parquet"
    with _locked(folder):
        known = _read(whole, "trials", IDENTITY) if whole.exists() else SCHEMA.empty_table()
        fresh = {p.name for p in _parts(folder, "trials")} - set(_held(known, "trials"))
        if fresh and len(fresh) * REFRESH_ROWS >= known.num_rows:
            write_table(whole, _sorted(_load(folder, "trials", sparing=True)[0]), replacing=True)


def compact(folder: Path, *, keep_parts: bool = False) -> None:
    """Bring `trials.parquet` and `tokens.parquet` up to date, then (unless `keep_parts`) remove the parts they hold.

    Tokens without a row, left by a search that was killed between the two, are dropped.
    """
    with _locked(folder):
        rows, parts = _load(folder, "trials")
        if parts:
            write_table(folder / "trials.parquet", _sorted(rows), replacing=True)
        tokens, token_parts = _load(folder, "tokens")
        tokens = _owned(tokens, rows["row_id"])
        if token_parts and tokens.num_rows:
            write_table(folder / "tokens.parquet", _sorted(tokens), replacing=True)
        if not keep_parts:
            young = _young_orphans(token_parts, rows["row_id"])
            try:
                for path in [*parts, *(p for p in token_parts if p not in young)]:
                    path.unlink(missing_ok=True)
            except OSError as e:
                raise unwritable(path, e) from e


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study's folder by trial, then run, as plain dictionaries. Raises `ResultsError` for a damaged file."""
    return _sorted(_load(folder, "trials", sparing=True)[0]).to_pylist()


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a data frame with all columns of `NAMES`, in the given order."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(NAMES))


def read_trials(folder: str | Path, *, mixed_judges: bool = False) -> pd.DataFrame:
    """The rows of a study's folder, or of one .parquet file, as a data frame with all of `NAMES`; null is NaN or None.

    Indexed 0.. in the order of trial, then run. Rows of older versions are read as `results/README.md` says. Raises
    `ResultsError` for a folder without rows, a damaged file, one of a newer version, and (unless `mixed_judges`) rows of
    several judges.
    """
    table = read_table(folder)
    if not table.num_rows:
        raise ResultsError(f"{folder} holds no trials; give the folder of a study, such as results/demo")
    df = _sorted(table).to_pandas()
    if not mixed_judges:
        one_judge(df)
    return df


def read_tokens(folder: str | Path) -> pd.DataFrame:
    """The times of all tokens of the rows of a study's folder (or of one .parquet file), by trial, run and token."""
    tokens = read_table(folder, "tokens")
    if Path(folder).expanduser().is_dir():
        tokens = _owned(tokens, _load(Path(folder).expanduser(), "trials", sparing=True)[0]["row_id"])
    return _sorted(tokens).to_pandas()


def read_table(place: str | Path, dataset: str = "trials") -> pa.Table:
    """Rows or tokens of a study's folder or of one .parquet file, each once, in no order; empty if there are none."""
    place = Path(place).expanduser()
    if not place.is_file():
        return _load(place, dataset, sparing=True)[0]
    return _of_this_version(_read(place, dataset), place.parent.parent if place.parent.name == dataset else place.parent)


def one_judge(*frames: pd.DataFrame) -> str | None:
    """The judge that all frames' rows share. Raises `ResultsError` if there are several."""
    judges = sorted({str(j) for df in frames for j in df["judge"].dropna().unique()})
    if len(judges) > 1:
        raise ResultsError(f"rows of {len(judges)} judges ({', '.join(judges)}) are not comparable; keep the rows of one")
    return judges[0] if judges else None


def set_damaged_aside(folder: Path) -> list[str]:
    """Move files that are no rows to `damaged/`; returns one line for each. Leftovers of unfinished writes are removed."""
    lines = []
    with _locked(folder):
        for dataset in SCHEMAS:
            whole = folder / f"{dataset}.parquet"
            for leftover in [*(folder / dataset).glob(atomic.TEMPORARY.format("*")), atomic.temporary(whole)]:
                leftover.unlink(missing_ok=True)
            for path in [*([whole] if whole.exists() else []), *_parts(folder, dataset)]:
                try:
                    _read(path, dataset)
                except DamagedError:
                    target = folder / "damaged" / (f"tokens-{path.name}" if path.parent.name == "tokens" else path.name)
                    target.parent.mkdir(exist_ok=True)
                    os.replace(path, target)
                    lost = "its trial is measured again" if dataset == "trials" else "the times of its tokens are lost"
                    lines.append(f"{path} is cut short or damaged: moved to {target}, {lost}")
    return lines


def write_table(path: Path, table: pa.Table, *, replacing: bool = False) -> None:
    """Write a Parquet file whole or not at all, and wait until the disk has it.

    Libraries open a file twice, for its footer and for its data. `replacing` keeps them right if it is replaced in between:
    the new file has the old one's table at the same place and its own table after that, until `LONGEST_BYTES` are reached.
    """
    try:
        with (
            atomic.replacing(path) as partial,
            pa.OSFile(str(partial), "wb") as f,
            pq.ParquetWriter(f, table.schema) as writer,
        ):
            if replacing and path.exists() and path.stat().st_size < LONGEST_BYTES:
                f.write(_below(path))
            writer.write_table(table)
    except OSError as e:
        raise unwritable(path, e) from e


def _below(path: Path) -> bytes:
    """What a file that replaces this one has between its own beginning and its table: zeros, then this one's table."""
    first = pq.read_metadata(path).row_group(0).column(0)
    start = first.dictionary_page_offset or first.data_page_offset
    with open(path, "rb") as f:
        f.seek(start)
        return bytes(start - len(MAGIC)) + f.read()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the right to write in a study's folder, against other processes and threads."""
    place = folder / "trials"
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, os.O_RDONLY)
    except OSError as e:
        raise unwritable(place, e) from e
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_part(folder: Path, dataset: str, table: pa.Table) -> None:
    row_id, trial, run = (table[name][0].as_py() for name in ("row_id", "trial", "run"))
    path = part_path(folder, trial, run, dataset)
    with _locked(folder):
        there = _row_id(folder, trial, run)
        if there not in (None, row_id):
            raise ResultsError(
                f"trial {trial}, run {run} of {folder} has a row already ({there}) and rows are never changed; "
                f"give the row {row_id} another run"
            )
        if there is None or dataset == "tokens":
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as e:
                raise unwritable(path, e) from e
            write_table(path, table)


def _row_id(folder: Path, trial: int, run: int) -> str | None:
    """The row that a trial's run has, if it has one."""
    for path in (folder / "trials.parquet", part_path(folder, trial, run), folder / "trials" / f"part-{trial:06d}.parquet"):
        if path.exists():
            table = _read(path, "trials", IDENTITY)
            found = table.filter((pc.field("trial") == trial) & (pc.field("run") == run))
            if found.num_rows:
                return str(found["row_id"][0].as_py())
    return None


def _parts(folder: Path, dataset: str) -> list[Path]:
    return sorted(p for p in (folder / dataset).glob("*.parquet") if not p.name.startswith("."))


def _load(folder: Path, dataset: str, *, sparing: bool = False) -> tuple[pa.Table, list[Path]]:
    """All rows, each once, and the parts they came from; `sparing`: without those that the whole file holds by their names.

    The parts are listed before the whole file is read: one that is gone by then, or when it is opened, was compacted, and
    the whole file holds it.
    """
    while True:
        listed, tables, seen = _parts(folder, dataset), [SCHEMAS[dataset].empty_table()], set[str]()
        with contextlib.suppress(FileNotFoundError):
            tables.append(_read(folder / f"{dataset}.parquet", dataset))
            seen.update(tables[-1]["row_id"].unique().to_pylist())
        held = _held(tables[-1], dataset)
        if sparing:
            listed = [p for p in listed if p.name not in held]
        try:
            for path in listed:
                if path.name in held and held[path.name].encode() in path.read_bytes():  # its statistics; 50 times faster
                    continue
                table = _read(path, dataset)
                ids = set(table["row_id"].unique().to_pylist())
                if ids & seen:
                    table = table.filter(pc.invert(pc.is_in(table["row_id"], pa.array(seen))))
                tables.append(table)
                seen |= ids
        except FileNotFoundError:
            continue
        return _of_this_version(pa.concat_tables(tables), folder), listed


def _of_this_version(table: pa.Table, folder: Path) -> pa.Table:
    """The table with what version 2 called `decode_tok_s` where it has its place now (see `results/README.md`). `folder` has
    the times of the tokens."""
    if "steady_tok_s" not in table.column_names:
        return table
    old = pc.and_(pc.equal(table["schema_version"], 2), pc.is_valid(table["decode_tok_s_low"]))  # without: an engine's own
    old = pc.and_(old, pc.is_null(table["steady_tok_s"]))
    if not pc.any(old).as_py():
        return table
    tokens = _owned(_load(folder, "tokens")[0], table.filter(old)["row_id"]).sort_by("token")
    runs = tokens.group_by("row_id", use_threads=False).aggregate([("wall_ms", "list")])
    times = dict(zip(runs["row_id"].to_pylist(), runs["wall_ms_list"].to_pylist(), strict=True))
    names = ("decode_tok_s", "decode_tok_s_low", "decode_tok_s_high", "steady_tok_s")
    rows = table.select(["row_id", *names]).to_pylist()
    for row in itertools.compress(rows, old.to_pylist()):
        median = row["decode_tok_s"]
        row |= {**(speeds(times[row["row_id"]]) if row["row_id"] in times else {}), "steady_tok_s": median}
    for name in names:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array([row[name] for row in rows], pa.float64()))
    return table


def _held(table: pa.Table, dataset: str) -> dict[str, str]:
    """The names of the parts that a whole file's rows came from, with their `row_id`."""
    runs = table.select(["trial", "run", "row_id"]).group_by(["trial", "run", "row_id"]).aggregate([]).to_pylist()
    return {part_path(Path(), run["trial"], run["run"], dataset).name: run["row_id"] for run in runs}


def _read(path: Path, dataset: str, names: Sequence[str] | None = None) -> pa.Table:
    """A file's rows with the columns of this version (of them, `names`)."""
    schema = SCHEMAS[dataset]
    if names is not None:
        schema = pa.schema([f for f in schema if f.name in names])
    try:
        with pq.ParquetFile(path) as f:  # one handle: the file may be replaced while it is read
            version = int((f.schema_arrow.metadata or {}).get(b"schema_version", 1))
            if version > SCHEMA_VERSION:
                raise ResultsError(
                    f"{path} has rows of version {version}, this headrace reads up to {SCHEMA_VERSION}; update headrace"
                )
            known = set(f.schema_arrow.names)
            if "trial" not in known or f.metadata.num_rows < 1:
                raise DamagedError(f"{path} holds no trial; remove it")
            wanted = [*schema.names, *(NEUTRAL if "removed_knobs" in schema.names else ())]
            table = f.read([name for name in wanted if name in known])
        return _conformed(table, schema, version)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as e:
        raise DamagedError(
            f"{path} is cut short or damaged; run its study again (it measures that trial anew) or remove it"
        ) from e


def _conformed(table: pa.Table, schema: pa.Schema, version: int) -> pa.Table:
    """The table with exactly the columns of `schema`; what its version did not have is filled in or null."""
    n, known = table.num_rows, set(table.column_names)
    columns = {f.name: table[f.name].cast(f.type) if f.name in known else pa.nulls(n, f.type) for f in schema}
    if "removed_knobs" in columns and "removed_knobs" not in known:
        columns["removed_knobs"] = _removed(table)
    for name, value in {"run": 0, "round": 1, "schema_version": version}.items():
        if name in columns:
            columns[name] = pc.fill_null(columns[name], value)
    if columns["row_id"].null_count:
        said = zip(*(columns[name].to_pylist() for name in ("study", "machine", "trial", "run", "started_at")), strict=True)
        made = ["v1-" + hashlib.sha256(repr([str(x) for x in values]).encode()).hexdigest()[:29] for values in said]
        columns["row_id"] = pc.coalesce(columns["row_id"], pa.array(made))
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _removed(table: pa.Table) -> pa.Array:
    """Of each row of an older version, the removed knobs (and removed values) that had an effect; null where none had."""
    said = []
    for row in table.select([name for name in ("trial", *NEUTRAL, "prefetch") if name in table.column_names]).to_pylist():
        active = {k: v for k, v in row.items() if k in NEUTRAL and v is not None and v != NEUTRAL[k]}
        if f"prefetch={row.get('prefetch')}" in REMOVED:
            active["prefetch"] = row["prefetch"]
        said.append(" ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in active.items()) or None)
    return pa.array(said, pa.string())


def _sorted(table: pa.Table) -> pa.Table:
    last = "token" if "token" in table.column_names else "row_id"
    return table.sort_by([(name, "ascending") for name in ("trial", "run", last)])


def _owned(tokens: pa.Table, row_ids: pa.ChunkedArray) -> pa.Table:
    return tokens.filter(pc.is_in(tokens["row_id"], row_ids.combine_chunks()))


def _young_orphans(parts: Sequence[Path], row_ids: pa.ChunkedArray) -> set[Path]:
    """Parts of tokens whose row may still be on its way."""
    known, since = set(row_ids.to_pylist()), time.time() - ORPHAN_S
    recent = [p for p in parts if p.stat().st_mtime > since]
    return {p for p in recent if _read(p, "tokens")["row_id"][0].as_py() not in known}
