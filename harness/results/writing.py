"""Writing rows: each row whole or not at all, once, and never changed.

A run's row is first a part file of its own in `trials/`. `refresh` and `compact` bring it into `trials.parquet`, which is
replaced whole and never has fewer rows than before. Writers hold a lock on `trials/` that ends with their process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.system import atomic
from engine.system.file_lock import lock
from engine.system.strict_json import refuse_not_finite
from harness import ResultsError

from .columns import NAMES, SCHEMA_VERSION
from .files import unwritable
from .older import fill
from .parquet import SCHEMA, SCHEMAS, TOKENS_SCHEMA, DamagedError, part_path, part_paths, read_file, write_table
from .rows import held_parts, in_order, load, owned

IDENTITY = ("row_id", "trial", "run", "round", "schema_version", "study", "machine", "started_at")
REFRESH_ROWS = 500  # rewriting this many rows is cheap beside a trial


def write_row(folder: Path, row: Mapping[str, Any]) -> None:
    """Write a run's row: a crash at any moment leaves the whole file or none. The row needs exactly the keys `NAMES`.

    A row that is already there (same `row_id`) is left as it is. Raises `ResultsError` if the trial's run has another row,
    or if the file cannot be written, and `FigureError` for a number that is not finite.
    """
    refuse_not_finite(row, f"trial {row.get('trial')}, run {row.get('run')}")
    if set(row) != set(NAMES):
        raise KeyError(f"a row lacks or exceeds the columns by {sorted(set(row) ^ set(NAMES))}")
    table = fill(pa.Table.from_pylist([dict(row)], schema=SCHEMA), SCHEMA, SCHEMA_VERSION)
    _write_part(folder, "trials", table)


def write_tokens(folder: Path, row_id: str, trial: int, run: int, token_ms: Sequence[float]) -> None:
    """Write the wall times of a run's timed tokens, in ms. Call it before `write_row`: then each row has its tokens."""
    refuse_not_finite(token_ms, f"the token times of trial {trial}, run {run}")
    n = len(token_ms)
    columns = [[row_id] * n, [trial] * n, [run] * n, range(n), token_ms]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, TOKENS_SCHEMA, strict=True)]
    if n:
        _write_part(folder, "tokens", pa.Table.from_arrays(arrays, schema=TOKENS_SCHEMA))


def refresh(folder: Path) -> None:
    """Bring `trials.parquet` up to date and keep the parts: after every row at first, after every sixth of 3,000 rows."""
    whole = folder / "trials.parquet"
    with _locked(folder):
        known = read_file(whole, "trials", IDENTITY) if whole.exists() else SCHEMA.empty_table()
        fresh = {p.name for p in part_paths(folder, "trials")} - set(held_parts(known, "trials"))
        if fresh and len(fresh) * REFRESH_ROWS >= known.num_rows:
            write_table(whole, in_order(load(folder, "trials", sparing=True)[0]), replacing=True)


def compact(folder: Path, *, keep_parts: bool = False) -> None:
    """Bring `trials.parquet` and `tokens.parquet` up to date, then (unless `keep_parts`) remove the parts they hold.

    Tokens without a row, which a search leaves if it is killed between writing the two, are dropped. Only the process that
    writes the folder's rows calls this, between two rows.
    """
    with _locked(folder):
        rows, parts = load(folder, "trials")
        if parts:
            write_table(folder / "trials.parquet", in_order(rows), replacing=True)
        tokens, token_parts = load(folder, "tokens")
        tokens = owned(tokens, rows["row_id"])
        if token_parts and tokens.num_rows:
            write_table(folder / "tokens.parquet", in_order(tokens), replacing=True)
        if not keep_parts:
            try:
                for path in [*parts, *token_parts]:
                    path.unlink(missing_ok=True)
            except OSError as e:
                raise unwritable(path, e) from e


def set_damaged_aside(folder: Path) -> list[str]:
    """Move damaged files to `damaged/` and remove unfinished ones. Returns one line for each damaged file."""
    lines = []
    with _locked(folder):
        for dataset in SCHEMAS:
            whole = folder / f"{dataset}.parquet"
            for leftover in [*(folder / dataset).glob(atomic.TEMPORARY.format("*")), atomic.temporary(whole)]:
                leftover.unlink(missing_ok=True)
            for path in [*([whole] if whole.exists() else []), *part_paths(folder, dataset)]:
                try:
                    read_file(path, dataset)
                except DamagedError:
                    target = folder / "damaged" / (f"tokens-{path.name}" if path.parent.name == "tokens" else path.name)
                    target.parent.mkdir(exist_ok=True)
                    os.replace(path, target)
                    loss = "its trial is measured again" if dataset == "trials" else "the times of its tokens are lost"
                    lines.append(f"{path} is truncated or damaged: moved to {target}, {loss}")
    return lines


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
        lock(handle, folder, wait=True)
        yield
    finally:
        os.close(handle)


def _write_part(folder: Path, dataset: str, table: pa.Table) -> None:
    row_id, trial, run = (table[name][0].as_py() for name in ("row_id", "trial", "run"))
    path = part_path(folder, trial, run, dataset)
    with _locked(folder):
        existing = _row_id(folder, trial, run)
        if existing not in (None, row_id):
            raise ResultsError(
                f"trial {trial}, run {run} of {folder} already has a row ({existing}), and rows are never changed; "
                f"give the row {row_id} another run number"
            )
        if existing is None or dataset == "tokens":
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as e:
                raise unwritable(path, e) from e
            write_table(path, table)


def _row_id(folder: Path, trial: int, run: int) -> str | None:
    """The `row_id` of a trial's run; None if it has no row."""
    for path in (folder / "trials.parquet", part_path(folder, trial, run), folder / "trials" / f"part-{trial:06d}.parquet"):
        if path.exists():
            table = read_file(path, "trials", IDENTITY)
            found = table.filter((pc.field("trial") == trial) & (pc.field("run") == run))
            if found.num_rows:
                return str(found["row_id"][0].as_py())
    return None
