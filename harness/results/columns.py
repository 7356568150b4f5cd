"""The columns of a trial's row: one table from which the Parquet schema and the documentation are made.

    python -m harness.results.columns        print the documentation's tables

The schema is always given to Parquet: a first row whose column is all null would else fix that column's type to null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from engine import Knobs, Measurement
from harness import ResultsError

SCHEMA_VERSION = 3
Direction = Literal["maximize", "minimize"]
FIGURES = {f.name: f for f in dataclasses.fields(Measurement) if f.metadata}
METRICS: dict[str, Direction] = {n: f.metadata["better"] for n, f in FIGURES.items() if f.metadata["better"]}  # to optimise
SHORT = {name: f.metadata["short"] for name, f in FIGURES.items() if f.metadata["short"]}  # name and unit in a table
SPEEDS = tuple(name for name in METRICS if FIGURES[name].metadata["speed"])  # what noise is about
PRIOR = {name: FIGURES[name].metadata["noise"] for name in METRICS}  # relative standard deviation of a single run
QUALITY = tuple(name for name, f in FIGURES.items() if f.metadata["quality"])  # what the lossy knobs alone decide
CONSTRAINABLE = (*METRICS, "json_valid")
OBJECTIVES = {name: METRICS[name] for name in ("decode_tok_s", "peak_memory_gb", "perplexity")}  # if a study says nothing
# Not run: infeasible (a limit, foreseen by arithmetic), dominated (a ceiling, likewise). Ended early: stopped (too slow).
STATUSES = ("ok", "infeasible", "dominated", "stopped", "oom", "timeout", "hang", "crash", "wrong")
NOT_RUN = ("infeasible", "dominated")
ORIGINS = (
    *("reference", "anchor", "sampler", "random", "proposer"),  # who chose the setting: its run 0
    *("repeat", "sentinel", "confirm", "again"),  # why it is measured once more
)
KINDS = {"float": pa.float64(), "int": pa.int64(), "str": pa.string(), "bool": pa.bool_(), "time": pa.timestamp("us", "UTC"),
         "float32": pa.float32(), "int32": pa.int32()}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column's name, its kind (a key of `KINDS`), its unit and its meaning. Null where it was not measured."""

    name: str
    kind: str
    unit: str
    text: str
    null: bool = True


def _declared(of: type, prefix: str = "") -> list[Column]:
    """The columns of the fields that say unit and meaning: knobs and figures."""
    said = [(f, str(f.type).split(" |")[0]) for f in dataclasses.fields(of) if f.metadata]
    return [Column(f.name, kind, f.metadata["unit"], prefix + f.metadata["text"]) for f, kind in said]


COLUMNS = (
    Column("row_id", "str", "", "identity of the row, the same in every merged set; null in version 1"),
    Column("schema_version", "int", "", "version of these columns that the row was written with"),
    Column("trial", "int", "", "number of the setting in the study, 0 is the reference; stable over restarts", null=False),
    Column("run", "int", "", "which measurement of the setting: 0 the first, 1 .. the repeats"),
    Column("round", "int", "", "round of the search, 1 the first"),
    Column("status", "str", "", f"{', '.join(STATUSES)}; infeasible, dominated: not run; stopped: too slow", null=False),
    Column("status_reason", "str", "", "one line on why it is not ok"),
    Column("origin", "str", "", f"who chose the setting, or why it is measured again: {', '.join(ORIGINS)}", null=False),
    Column("proposer", "str", "", "what proposed: a sampler's name, or the command outside"),
    Column("attempt", "int", "", "1, or more if a start of this run was cut off before"),
    Column("objectives", "str", "", "the study's objectives, by comma; null in version 1: the three default ones"),
    Column("feasible", "bool", "", "whether all of the study's constraints hold; null without figures"),
    Column("violated", "str", "", "the constraints that do not"),
    Column("suspect", "str", "", "why this run is not to be trusted: heat, swap, battery, load; drift is in the sentinels"),
    Column("drift", "float", "", "of a sentinel: its speed as a multiple of the earlier ones' median"),
    Column("drift_since", "time", "UTC", "of a sentinel that drifted: runs started from then on are suspect"),
    Column("quality_of", "int", "", "trial whose run measured this lossy setting's quality, if it is not this one"),
    Column("score_s", "float", "s", "of wall_s: spent on quality alone, after the clock stopped"),
    Column("saved_s", "float", "s", "time that was not spent, estimated: not run, stopped early, or quality known"),
    Column("note", "str", "", "what the proposer said of it"),
    Column("log_tail", "str", "", "the last lines of the log of a run that went wrong"),
    *_declared(Knobs, "knob: "),
    Column("removed_knobs", "str", "", "of an older row: knobs that were removed since and had an effect, NAME=VALUE"),
    *_declared(Measurement),
    Column("decode_tok_s_low", "float", "tokens/s", "95 % interval within this run, by block bootstrap of token times"),
    Column("decode_tok_s_high", "float", "tokens/s", "the same, upper end; differences between runs are larger"),
    Column("steady_tok_s", "float", "tokens/s", "median speed of stretches of 16 tokens: without the few longest waits"),
    Column("warm_up_tokens", "int", "", "decoded before the clock started"),
    Column("timed_tokens", "int", "", "to be decoded against the clock; null: all continuations"),
    Column("page_cache", "str", "", "how the run began: cold, warm or as_is"),
    Column("load_before", "float", "cores", "busy cores before the run: the load of others"),
    Column("load_during", "float", "cores", "busy cores during the run without those of the run itself"),
    Column("available_gb_before", "float", "GB", "memory available before the run"),
    Column("thermal_state_before", "str", "", "as thermal_state, before the run"),
    Column("temperature_c_before", "float", "°C", "as temperature_c, before the run"),
    Column("power_source_before", "str", "", "as power_source, before the run"),
    Column("waited_s", "float", "s", "waited for a cool and quiet machine, and to cool down"),
    Column("predicted_peak_gb", "float", "GB", "foreseen by arithmetic before the run: weights alone"),
    Column("seen_peak_gb", "float", "GB", "high-water mark as watched from outside, whatever the trial's fate"),
    Column("wall_s", "float", "s", "the whole trial: start, load, measure"),
    Column("started_at", "time", "UTC", "start of the trial"),
    Column("study", "str", "", "name of the study"),
    Column("seed", "int", "", "the study's seed"),
    Column("sampler", "str", "", "sampler in use"),
    Column("sampler_seed", "int", "", "its seed for this setting"),
    Column("space", "str", "", "fingerprint of search space and fixed knobs"),
    Column("quality", "str", "", "the judge's file, and how many of its texts if not all"),
    Column("model", "str", "", "name of the model: that of the checkpoint's folder, or as the study says"),
    Column("architecture", "str", "", "model_type of the checkpoint"),
    Column("model_fingerprint", "str", "", "fingerprint of the checkpoint, whatever its name"),
    Column("limit_gb", "float", "GB", "memory above which a trial is oom"),
    Column("machine", "str", "", "fingerprint of the host's name"),
    Column("cpu", "str", "", "processor"),
    Column("cores", "int", "", "logical cores"),
    Column("machine_memory_gb", "float", "GB", "memory of the machine"),
    Column("os", "str", "", "operating system and release"),
    Column("engine", "str", "", "module that measured"),
    Column("commit", "str", "", "commit of headrace; null outside a checkout"),
    Column("dirty", "bool", "", "whether tracked files differed from it"),
    Column("python", "str", "", "version"),
    Column("mlx", "str", "", "version"),
    Column("mlx_lm", "str", "", "version"),
    Column("optuna", "str", "", "version"),
)
NAMES = tuple(c.name for c in COLUMNS)
TOKEN_COLUMNS = (  # of tokens.parquet
    Column("row_id", "str", "", "the row of the run, as in trials.parquet", null=False),
    Column("trial", "int", "", "its trial", null=False),
    Column("run", "int", "", "its run", null=False),
    Column("token", "int32", "", "number of the timed token in the run, from 0", null=False),
    Column("wall_ms", "float32", "ms", "wall time of its forward pass", null=False),
)


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """The schema of a Parquet file, with units, meanings and the version."""
    fields = [pa.field(c.name, KINDS[c.kind], c.null, {"unit": c.unit, "text": c.text}) for c in columns]
    return pa.schema(fields, {"schema_version": str(SCHEMA_VERSION)})


def objectives_of(df: Any) -> dict[str, Direction]:
    """The objectives that the rows of a data frame share. Raises `ResultsError` if there are several sets."""
    said = set(df["objectives"].dropna().unique()) if "objectives" in df else set()
    if len(said) > 1:
        raise ResultsError(f"rows with different objectives ({'; '.join(sorted(said))}) cannot be compared; keep one's")
    return {name: METRICS[name] for name in said.pop().split(",")} if said else dict(OBJECTIVES)


TIMES = tuple(c.name for c in COLUMNS if c.kind == "time")


def packed(row: Mapping[str, Any]) -> str:
    """A row as text, for the storage."""
    return json.dumps({k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items() if v is not None})


def unpacked(text: str) -> dict[str, Any]:
    """The row of such a text."""
    said = json.loads(text)
    return {c.name: said.get(c.name) for c in COLUMNS} | {k: datetime.fromisoformat(said[k]) for k in TIMES if k in said}


def markdown(columns: Sequence[Column] = COLUMNS) -> str:
    """A table of `results/README.md`."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{c.name}` | {c.kind} | {c.unit} | {c.text} |" for c in columns])


if __name__ == "__main__":
    print(markdown(), markdown(TOKEN_COLUMNS), sep="\n\n")
