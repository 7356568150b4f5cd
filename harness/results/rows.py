"""Reading rows: every row of a study once, at any moment, whatever another process writes or compacts meanwhile.

    df = pandas.read_parquet("results/demo/trials.parquet")     or, with checks,    read_trials("results/demo")

A run's row is in a part file in `trials/` until it is compacted into `trials.parquet`, which holds all rows up to its last
refresh. The readers here look at both. Token times are in `tokens/` and `tokens.parquet` in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from harness import ResultsError

from .columns import NAMES
from .older import lacks_mean_speed, with_mean_speed
from .parquet import SCHEMAS, part_path, part_paths, read_file

if TYPE_CHECKING:
    import pandas as pd


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study's folder by trial, then run, as dictionaries. Raises `ResultsError` for a damaged file."""
    rows: list[dict[str, Any]] = in_order(load(folder, "trials", sparing=True)[0]).to_pylist()
    return rows


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a data frame with all columns, in the given order."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(NAMES))


def read_trials(folder: str | Path, *, mixed_texts: bool = False) -> pd.DataFrame:
    """The rows of a study's folder, or of one .parquet file, as a data frame with all columns; null is NaN or None.

    Ordered by trial, then run, and indexed from 0. Rows of older versions are converted (`docs/results.md`). Raises
    `ResultsError` for a folder without rows, for a damaged file, for a file of a newer version and, unless `mixed_texts`,
    for rows of several sets of evaluation texts.
    """
    table = read_table(folder)
    if not table.num_rows:
        raise ResultsError(f"{folder} has no trials; give the folder of a study, such as results/demo")
    df = in_order(table).to_pandas()
    if not mixed_texts:
        shared_texts(df)
    return df


def read_tokens(folder: str | Path) -> pd.DataFrame:
    """The token times of a study's rows, or of one .parquet file, by trial, run and token."""
    tokens = read_table(folder, "tokens")
    if Path(folder).expanduser().is_dir():
        tokens = owned(tokens, load(Path(folder).expanduser(), "trials", sparing=True)[0]["row_id"])
    return in_order(tokens).to_pandas()


def read_table(place: str | Path, dataset: str = "trials") -> pa.Table:
    """Rows or tokens of a study's folder or of one .parquet file, each once, unordered; empty if there are none."""
    place = Path(place).expanduser()
    if not place.is_file():
        return load(place, dataset, sparing=True)[0]
    folder = place.parent.parent if place.parent.name == dataset else place.parent
    return _with_current_speeds(read_file(place, dataset), folder)


def shared_texts(*frames: pd.DataFrame) -> str | None:
    """The `eval_fingerprint` of all rows of all frames. Raises `ResultsError` if there are several."""
    found = sorted({str(j) for df in frames for j in df["eval_fingerprint"].dropna().unique()})
    if len(found) > 1:
        raise ResultsError(
            f"rows of {len(found)} sets of evaluation texts ({', '.join(found)}) are not comparable; keep the rows of one"
        )
    return found[0] if found else None


def load(folder: Path, dataset: str, *, sparing: bool = False) -> tuple[pa.Table, list[Path]]:
    """All rows of a folder, each once, and the paths of its parts.

    `sparing` skips the parts whose names say that the whole file has them. The parts are listed before the whole file is
    read: a part that is gone by then, or when it is opened, has been compacted into the whole file.
    """
    while True:
        listed, tables, seen = part_paths(folder, dataset), [SCHEMAS[dataset].empty_table()], set[str]()
        with contextlib.suppress(FileNotFoundError):
            tables.append(read_file(folder / f"{dataset}.parquet", dataset))
            seen.update(tables[-1]["row_id"].unique().to_pylist())
        held = held_parts(tables[-1], dataset)
        if sparing:
            listed = [p for p in listed if p.name not in held]
        try:
            for path in listed:
                # The statistics in the file's footer contain the row_id: a search for its bytes is 50 times faster.
                if path.name in held and held[path.name].encode() in path.read_bytes():
                    continue
                table = read_file(path, dataset)
                ids = set(table["row_id"].unique().to_pylist())
                if ids & seen:
                    table = table.filter(pc.invert(pc.is_in(table["row_id"], pa.array(seen))))
                tables.append(table)
                seen |= ids
        except FileNotFoundError:
            continue
        return _with_current_speeds(pa.concat_tables(tables), folder), listed


def _with_current_speeds(table: pa.Table, folder: Path) -> pa.Table:
    """The table with the speeds of version 2 recomputed from the token times in `folder`."""
    if "steady_tok_s" not in table.column_names:
        return table
    old = lacks_mean_speed(table)
    if not pc.any(old).as_py():
        return table
    return with_mean_speed(table, old, owned(load(folder, "tokens")[0], table.filter(old)["row_id"]))


def held_parts(table: pa.Table, dataset: str) -> dict[str, str]:
    """Names of the parts that a whole file's rows came from, with their `row_id`."""
    runs = table.select(["trial", "run", "row_id"]).group_by(["trial", "run", "row_id"]).aggregate([]).to_pylist()
    return {part_path(Path(), run["trial"], run["run"], dataset).name: run["row_id"] for run in runs}


def in_order(table: pa.Table) -> pa.Table:
    """Rows by trial and run; tokens by trial, run and token."""
    last = "token" if "token" in table.column_names else "row_id"
    return table.sort_by([(name, "ascending") for name in ("trial", "run", last)])


def owned(tokens: pa.Table, row_ids: pa.ChunkedArray) -> pa.Table:
    """The tokens of these rows."""
    return tokens.filter(pc.is_in(tokens["row_id"], row_ids.combine_chunks()))
