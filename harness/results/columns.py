"""Columns: one table that defines the Parquet schema of a row and its documentation.

    python -m harness.results.columns        print the tables of docs/results.md

Every file is written with this schema. Without it, a column that is null in the first row would have the type null.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from engine import Knobs, Measurement
from engine.system.strict_json import from_json, to_json

SCHEMA_VERSION = 6
# Status of a run. infeasible and dominated: pruned by arithmetic, so nothing ran; stopped: ended early because it is slow.
STATUSES = ("ok", "infeasible", "dominated", "stopped", "oom", "timeout", "hang", "crash", "wrong")
NOT_RUN = ("infeasible", "dominated")
ORIGINS = (
    *("reference", "anchor", "sampler", "random", "proposer"),  # a trial's first run: what proposed its setting
    *("repeat", "sentinel", "confirm", "again"),  # a later run: the reason for measuring it again
)
TYPES = {"float": pa.float64(), "int": pa.int64(), "str": pa.string(), "bool": pa.bool_(), "time": pa.timestamp("us", "UTC"),
         "float32": pa.float32(), "int32": pa.int32()}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column's name, type (a key of `TYPES`), unit and meaning. A figure that was not measured is null."""

    name: str
    kind: str
    unit: str
    text: str
    null: bool = True


TIME_COLUMNS = (  # where the time of a run went, with prefix_s, fill_s, timed_s and score_s (harness.analysis.runs.hours)
    Column("session", "str", "", "identifier of the command that measured the run; null in older rows"),
    Column(
        "session_s", "float", "s",
        "time since that command began, when the run ended: sleep and lost_s of an earlier command included",
    ),
    Column(
        "between_s", "float", "s",
        "time since the run before, or since the command began, besides cool_down_s and waited_s: proposing, rows, a look "
        "at the machine",
    ),
    Column("cool_down_s", "float", "s", "pause before the run (protocol.cool_down_s)"),
    Column("lost_s", "float", "s", "time of earlier starts of this run without a row: interrupted, or failed after sleep"),
    Column("start_s", "float", "s", "part of wall_s until the run's process had its imports and its request"),
    Column("prepare_s", "float", "s", "part of wall_s that prepared page cache and reference logits before loading"),
    Column("load_s", "float", "s", "part of wall_s that opened the model and read its resident and pinned weights"),
    Column("end_s", "float", "s", "part of wall_s from the run's result to the end of its process"),
)  # fmt: skip


def _declared(of: type, prefix: str = "") -> list[Column]:
    """The columns of a dataclass whose fields carry a unit and a text: `Knobs` or `Measurement`."""
    fields = [(f, str(f.type).split(" |")[0]) for f in dataclasses.fields(of) if f.metadata]
    return [Column(f.name, kind, f.metadata["unit"], prefix + f.metadata["text"]) for f, kind in fields]


COLUMNS = (
    Column("row_id", "str", "", "identifier of the row, kept when rows are merged; derived in version 1"),
    Column("schema_version", "int", "", "version of the columns that the row was written with"),
    Column("headrace_version", "str", "", "version of headrace that wrote the row; null before version 4"),
    Column(
        "sequence", "int", "",
        "number of the row in its results folder, from 1: the order of the runs; null in rows of older versions",
    ),
    Column("trial", "int", "", "number of the setting in the study; 0 is the reference", null=False),
    Column("run", "int", "", "number of the measurement of this setting; 0 is the first"),
    Column("round", "int", "", "round of the search, from 1"),
    Column(
        "status", "str", "",
        f"{', '.join(STATUSES)}; infeasible and dominated: pruned by arithmetic, not run; stopped: ended early as too slow",
        null=False,
    ),
    Column("status_reason", "str", "", "one line of explanation if the status is not ok"),
    Column(
        "origin", "str", "",
        f"what proposed the setting, or why it is measured again: {', '.join(ORIGINS)}", null=False,
    ),
    Column("proposer", "str", "", "name of the sampler, or the external command, that proposed the setting"),
    Column("attempt", "int", "", "number of this start of the run; above 1 if earlier starts were interrupted"),
    Column("objectives", "str", "", "objectives of the study, comma-separated; null in version 1: the default three"),
    Column("feasible", "bool", "", "whether all constraints of the study hold; null without figures"),
    Column("violated", "str", "", "constraints that are violated"),
    Column("suspect", "str", "", "why this run is unreliable: heat, swap, battery, load, sleep; drift is in sentinel runs"),
    Column("drift", "float", "", "sentinel runs: speed divided by the median of the earlier sentinel runs"),
    Column("drift_since", "time", "UTC", "sentinel runs that drifted: start of the one before"),
    Column("drift_sequence", "int", "", "sentinel runs that drifted: sequence of the one before; runs since are suspect"),
    Column("quality_from_trial", "int", "", "trial that the quality figures were copied from; null if measured in this run"),
    Column(
        "scoring_stopped", "str", "",
        "why scoring ended early, after scored_tokens tokens; perplexity is then null; null: scoring was complete",
    ),
    Column("perplexity_at_least", "float", "", "lower end of the interval in which perplexity lies if scoring ended early"),
    Column("perplexity_at_most", "float", "", "upper end of that interval"),
    *TIME_COLUMNS,
    Column("score_s", "float", "s", "part of wall_s spent on quality alone, after the timed part"),
    Column("saved_s", "float", "s", "estimated time saved because the run was pruned, stopped early, or reused quality"),
    Column("note", "str", "", "comment of the proposer"),
    Column("log_tail", "str", "", "last lines of the log of a failed run"),
    *_declared(Knobs, "knob: "),
    Column("removed_knobs", "str", "", "older rows: knobs that had an effect and were removed since, as NAME=VALUE"),
    *_declared(Measurement),
    Column("decode_tok_s_low", "float", "tokens/s", "lower end of the 95 % interval within this run (block bootstrap)"),
    Column("decode_tok_s_high", "float", "tokens/s", "upper end of that interval; runs differ by more than it covers"),
    Column("steady_tok_s", "float", "tokens/s", "median speed of blocks of 16 tokens; the longest waits hardly affect it"),
    Column(
        "forecast_tok_s", "float", "tokens/s",
        "decode_tok_s by arithmetic, from what was known before the run (docs/forecast.md); null: no forecast",
    ),
    Column("forecast_tok_s_low", "float", "tokens/s", "lower end of the forecast's 80 % interval"),
    Column("forecast_tok_s_high", "float", "tokens/s", "upper end of that interval"),
    Column("warm_up_tokens", "int", "", "tokens decoded before the timed part"),
    Column("timed_tokens", "int", "", "tokens to decode in the timed part; null: all continuations"),
    Column("page_cache", "str", "", "page cache at the start of the run: cold, warm or as_is"),
    Column(
        "state", "str", "",
        "experts' cache when the timed part starts: prefilled, steady or cold; null in older rows, which are prefilled",
    ),
    Column("load_before", "float", "cores", "busy cores before the run"),
    Column("load_during", "float", "cores", "busy cores during the run, without those of the run itself"),
    Column("available_gb_before", "float", "GB", "available memory before the run"),
    Column("thermal_state_before", "str", "", "thermal_state before the run"),
    Column("thermal_pressure_before", "str", "", "thermal_pressure before the run"),
    Column("temperature_c_before", "float", "°C", "temperature_c before the run"),
    Column("power_source_before", "str", "", "power_source before the run"),
    Column("run_swap_out_bytes", "int", "bytes", "bytes swapped out during the whole run, loading included, whole machine"),
    Column("swap_out_mb_s", "float", "MB/s", "highest rate of swapping out between two samples of the run, whole machine"),
    Column("waited_s", "float", "s", "time spent waiting for the machine to be cool and idle before the run"),
    Column("predicted_peak_gb", "float", "GB", "peak memory of the process, predicted before the run (docs/memory.md)"),
    Column("seen_peak_gb", "float", "GB",
           "peak memory of the process as observed from outside, scoring included, for every status; "
           "null if it ended before the first look"),
    Column("wall_s", "float", "s", "duration of the run, awake, from its request: rest of the start, load and measurement"),
    Column("slept_s", "float", "s", "time besides wall_s in which the machine slept or stood still during the run"),
    Column("started_at", "time", "UTC", "start of the run: the wall clock at the session's start, plus time without jumps"),
    Column("study", "str", "", "name of the study"),
    Column("seed", "int", "", "seed of the study"),
    Column("sampler", "str", "", "sampler in use"),
    Column("sampler_seed", "int", "", "seed of the sampler for this setting"),
    Column("space", "str", "", "fingerprint of the search space and the fixed knobs"),
    Column("eval_texts", "str", "", "file of the evaluation texts, and how many of them if not all"),
    Column("model", "str", "", "name of the model: the checkpoint's folder, or the name in the study"),
    Column("architecture", "str", "", "model_type of the checkpoint"),
    Column("model_fingerprint", "str", "", "fingerprint of the checkpoint's content"),
    Column("limit_gb", "float", "GB", "memory limit; a run above it is oom"),
    Column(
        "device_profile", "str", "",
        "device whose limits held in place of this machine's: the measured figures are this machine's; null: its own",
    ),
    Column("machine", "str", "", "fingerprint of the host name"),
    Column("cpu", "str", "", "processor"),
    Column("cores", "int", "", "logical cores"),
    Column("machine_memory_gb", "float", "GB", "memory of the machine"),
    Column("os", "str", "", "operating system and release"),
    Column("engine", "str", "", "module or command that measured"),
    Column("commit", "str", "", "commit of headrace; null outside a checkout"),
    Column("dirty", "bool", "", "whether tracked files differed from that commit"),
    Column("python", "str", "", "version of Python"),
    Column("mlx", "str", "", "version of MLX"),
    Column("mlx_lm", "str", "", "version of mlx-lm"),
    Column("optuna", "str", "", "version of Optuna"),
)  # fmt: skip
NAMES = tuple(c.name for c in COLUMNS)
TIMES = tuple(c.name for c in COLUMNS if c.kind == "time")
TOKEN_COLUMNS = (  # of tokens.parquet
    Column("row_id", "str", "", "row_id of the run in trials.parquet", null=False),
    Column("trial", "int", "", "trial of the run", null=False),
    Column("run", "int", "", "number of the run", null=False),
    Column("token", "int32", "", "index of the timed token in the run, from 0", null=False),
    Column("wall_ms", "float32", "ms", "wall time of the token's forward pass", null=False),
)


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """The schema of a Parquet file: types, with units and meanings as metadata of the fields and the version of the file."""
    fields = [pa.field(c.name, TYPES[c.kind], c.null, {"unit": c.unit, "text": c.text}) for c in columns]
    return pa.schema(fields, {"schema_version": str(SCHEMA_VERSION)})


def row_to_json(row: Mapping[str, Any]) -> str:
    """A row as JSON without its nulls, for Optuna's storage."""
    return to_json({k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items() if v is not None})


def row_from_json(text: str) -> dict[str, Any]:
    """The row of `row_to_json`'s text, with all of `NAMES`."""
    given = from_json(text)
    return {name: given.get(name) for name in NAMES} | {k: datetime.fromisoformat(given[k]) for k in TIMES if k in given}


def markdown(columns: Sequence[Column] = COLUMNS) -> str:
    """The table of `columns` in `docs/results.md`."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{c.name}` | {c.kind} | {c.unit} | {c.text} |" for c in columns])


if __name__ == "__main__":
    from .older import renamed_markdown

    print(markdown(), markdown(TOKEN_COLUMNS), renamed_markdown(), sep="\n\n")
