"""Rows in Parquet: one file a trial, written whole or not at all, readable at any moment.

    df = pandas.read_parquet("results/demo/trials")     or, with its checks,    read_trials("results/demo")

A file under a name with a leading dot is not yet a row: pandas and pyarrow pass it over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import ResultsError
from .columns import NAMES, SCHEMA

if TYPE_CHECKING:
    import pandas as pd


def part_path(folder: Path, trial: int) -> Path:
    """Where the row of a trial lies in a study's folder."""
    return folder / "trials" / f"part-{trial:06d}.parquet"


def write_row(folder: Path, row: Mapping[str, Any]) -> None:
    """Write a trial's row so that a crash at any moment leaves either the whole file or none. All of `NAMES` are needed."""
    if set(row) != set(NAMES):
        raise KeyError(f"a row lacks or exceeds the columns by {sorted(set(row) ^ set(NAMES))}")
    path = part_path(folder, row["trial"])
    tmp = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(tmp, "wb") as f:
            pq.write_table(pa.Table.from_pylist([dict(row)], schema=SCHEMA), f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
        sync_folder(path.parent)
    except OSError as e:
        raise ResultsError(f"{path} cannot be written ({e.strerror}); make room, then run the same command again") from e


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study's folder by trial number, as plain dictionaries. Raises `ResultsError` for a damaged file."""
    rows = [row for p in _parts(folder) for row in _read_part(p).to_pylist()]
    return sorted(({name: row.get(name) for name in NAMES} for row in rows), key=lambda row: row["trial"])


def read_trials(folder: str | Path, *, mixed_judges: bool = False) -> pd.DataFrame:
    """The rows of a study's folder as a data frame indexed 0.. in the order of `trial`; null is NaN or None.

    Raises `ResultsError` for a folder without rows, a damaged file, and (unless `mixed_judges`) rows of several judges.
    """
    folder = Path(folder).expanduser()
    parts = _parts(folder)
    if not parts:
        raise ResultsError(f"{folder} holds no trials; give the folder of a study, such as results/demo")
    tables = [_read_part(p) for p in parts]
    df = pa.concat_tables(tables, promote_options="default").to_pandas().sort_values("trial", ignore_index=True)
    if not mixed_judges:
        one_judge(df)
    return df


def one_judge(*frames: pd.DataFrame) -> str | None:
    """The judge that all frames' rows share. Raises `ResultsError` if there are several."""
    judges = sorted({str(j) for df in frames for j in df["judge"].dropna().unique()})
    if len(judges) > 1:
        raise ResultsError(f"rows of {len(judges)} judges ({', '.join(judges)}) are not comparable; keep the rows of one")
    return judges[0] if judges else None


def set_damaged_aside(folder: Path) -> list[str]:
    """Move files that are no rows to `damaged/`; returns one line for each. Leftovers of unfinished writes are removed."""
    for leftover in (folder / "trials").glob(".*.tmp"):
        leftover.unlink()
    lines = []
    for path in _parts(folder):
        try:
            _read_part(path)
        except ResultsError:
            target = folder / "damaged" / path.name
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
            lines.append(f"{path} is cut short or damaged: moved to {target}, its trial is measured again")
    return lines


def _parts(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "trials").glob("*.parquet") if not p.name.startswith("."))


def _read_part(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as e:
        raise ResultsError(
            f"{path} is cut short or damaged; run its study again (it measures that trial anew) or remove it"
        ) from e
    if "trial" not in table.column_names or table.num_rows < 1:
        raise ResultsError(f"{path} holds no trial; remove it")
    return table
