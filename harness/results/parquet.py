"""Parquet: one file of rows or of tokens, written whole or not at all and read with the current schema.

A file whose name begins with a dot is unfinished; pandas and pyarrow ignore it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.system import atomic
from harness import ResultsError

from .columns import COLUMNS, SCHEMA_VERSION, TOKEN_COLUMNS, schema_of
from .files import unwritable
from .older import NEUTRAL, current_names, fill

SCHEMA, TOKENS_SCHEMA = schema_of(COLUMNS), schema_of(TOKEN_COLUMNS)
SCHEMAS = {"trials": SCHEMA, "tokens": TOKENS_SCHEMA}
MAX_REPLACED_BYTES = 8 << 20  # a larger file is written anew instead of behind its predecessor's table
MAGIC = b"PAR1"  # first bytes of a Parquet file


class DamagedError(ResultsError):
    """A Parquet file that is truncated, damaged or without rows."""


def part_path(folder: Path, trial: int, run: int = 0, dataset: str = "trials") -> Path:
    """Path of a run's row (or of its tokens) in a study's folder before it is compacted."""
    return folder / dataset / f"part-{trial:06d}-{run:02d}.parquet"


def part_paths(folder: Path, dataset: str) -> list[Path]:
    """The part files of a dataset, by name."""
    return sorted(p for p in (folder / dataset).glob("*.parquet") if not p.name.startswith("."))


def read_file(path: Path, dataset: str, names: Sequence[str] | None = None) -> pa.Table:
    """The rows of a file with the current columns (only `names` if given), except for the speeds of version 2.

    Raises `FileNotFoundError`, `DamagedError`, and `ResultsError` for a newer version.
    """
    schema = SCHEMAS[dataset]
    if names is not None:
        schema = pa.schema([f for f in schema if f.name in names])
    try:
        with pq.ParquetFile(path) as f:  # one handle: another process may replace the file meanwhile
            own = f.schema_arrow
            version = int((own.metadata or {}).get(b"schema_version", 1))
            if version > SCHEMA_VERSION:
                raise ResultsError(
                    f"{path} has rows of version {version}; this headrace reads up to {SCHEMA_VERSION}; update headrace"
                )
            stored = own.names
            if "trial" not in stored or f.metadata.num_rows < 1:
                raise DamagedError(f"{path} has no rows of trials; remove it")
            known = dict(zip(current_names(stored, version), stored, strict=True))
            names_read = [*schema.names, *(NEUTRAL if "removed_knobs" in schema.names else ())]
            wanted = [name for name in names_read if name in known]
            table = f.read([known[name] for name in wanted]).select([known[name] for name in wanted]).rename_columns(wanted)
        return fill(table, schema, version)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as e:
        raise DamagedError(
            f"{path} is truncated or damaged; run its study again (the trial is measured again) or remove the file"
        ) from e


def write_table(path: Path, table: pa.Table, *, replacing: bool = False) -> None:
    """Write a Parquet file whole or not at all, and return once the disk has it. Raises `ResultsError` if that fails.

    Libraries open a file twice, for its footer and for its data. With `replacing`, a reader between the two still finds what
    the old footer describes: the new file keeps the old table at its place and appends its own, up to `MAX_REPLACED_BYTES`.
    """
    try:
        with (
            atomic.replacing(path) as partial,
            pa.OSFile(str(partial), "wb") as f,
            pq.ParquetWriter(f, table.schema) as writer,
        ):
            if replacing and path.exists() and path.stat().st_size < MAX_REPLACED_BYTES:
                f.write(_old_table(path))
            writer.write_table(table)
    except OSError as e:
        raise unwritable(path, e) from e


def _old_table(path: Path) -> bytes:
    """The bytes of a file after its magic number, with zeros up to the latest table that it holds."""
    first = pq.read_metadata(path).row_group(0).column(0)
    start = first.dictionary_page_offset or first.data_page_offset
    with open(path, "rb") as f:
        f.seek(start)
        return bytes(start - len(MAGIC)) + f.read()
