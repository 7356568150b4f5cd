"""The columns of a trial's row: one table from which the Parquet schema and the documentation are made.

    python -m harness.columns        print the documentation's table

The schema is always given to Parquet: a first row whose column is all null would else fix that column's type to null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from engine import Knobs

from . import ResultsError

SCHEMA_VERSION = 2
Direction = Literal["maximize", "minimize"]
METRICS: dict[str, Direction] = {  # what a study may optimise
    "decode_tok_s": "maximize",
    "prefill_tok_s": "maximize",
    "ttft_ms": "minimize",
    "peak_memory_gb": "minimize",
    "perplexity": "minimize",
    "kl": "minimize",
    "bytes_per_token": "minimize",
}
QUALITY = ("perplexity", "kl", "json_valid")  # what the lossy knobs alone decide
CONSTRAINABLE = (*METRICS, "json_valid")
OBJECTIVES = {name: METRICS[name] for name in ("decode_tok_s", "peak_memory_gb", "perplexity")}  # if a study says nothing
# Not run: infeasible (a limit, foreseen by arithmetic), dominated (a ceiling, likewise). Ended early: stopped (too slow).
STATUSES = ("ok", "infeasible", "dominated", "stopped", "oom", "timeout", "hang", "crash", "wrong")
NOT_RUN = ("infeasible", "dominated")
ORIGINS = (
    *("reference", "anchor", "sampler", "random", "proposer"),  # who chose the setting: its run 0
    *("repeat", "sentinel", "confirm", "again"),  # why it is measured once more
)
KINDS = {"float": pa.float64(), "int": pa.int64(), "str": pa.string(), "bool": pa.bool_(), "time": pa.timestamp("us", "UTC")}


@dataclass(frozen=True)
class Column:
    """A column's name, its kind (a key of `KINDS`), its unit and its meaning. Null where it was not measured."""

    name: str
    kind: str
    unit: str
    text: str


def _knob_columns() -> list[Column]:
    return [
        Column(f.name, str(f.type).split(" |")[0], _unit(f.name), f"knob: {f.metadata['text']}")
        for f in dataclasses.fields(Knobs)
    ]


def _unit(name: str) -> str:
    units = {"_gb": "GB", "_mb": "MB", "_kib": "KiB", "_gbps": "GB/s", "_half_life": "tokens", "_bits": "bits"}
    return next((unit for suffix, unit in units.items() if name.endswith(suffix)), "")


COLUMNS = (
    Column("row_id", "str", "", "identity of the row, the same in every merged set; null in version 1"),
    Column("schema_version", "int", "", "version of these columns that the row was written with"),
    Column("trial", "int", "", "number of the setting in the study, 0 is the reference; stable over restarts"),
    Column("run", "int", "", "which measurement of the setting: 0 the first, 1 .. the repeats"),
    Column("round", "int", "", "round of the search, 1 the first"),
    Column(
        "status",
        "str",
        "",
        "ok; not run: infeasible, dominated (both foreseen); ended early: stopped; else oom, timeout, hang, crash or wrong",
    ),
    Column("status_reason", "str", "", "one line on why it is not ok"),
    Column("origin", "str", "", f"who chose the setting, or why it is measured once more: {', '.join(ORIGINS)}"),
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
    *_knob_columns(),
    Column("decode_tok_s", "float", "tokens/s", "speed of the timed tokens (objective: more); so far, if stopped"),
    Column("decode_tok_s_low", "float", "tokens/s", "95 % interval within this run, by block bootstrap of token times"),
    Column("decode_tok_s_high", "float", "tokens/s", "the same, upper end; differences between runs are larger"),
    Column("peak_memory_gb", "float", "GB", "high-water mark of the run's process (objective: less)"),
    Column("perplexity", "float", "", "exp of nll (objective: less)"),
    Column("kl", "float", "nats", "mean KL divergence from the reference's next-token distribution; null if not asked for"),
    Column("json_valid", "float", "", "share of the JSON prompts completed to a valid object; null if not asked for"),
    Column("ttft_ms", "float", "ms", "time to first token: prefill of a prompt, median of the judge's texts"),
    Column("hit_rate", "float", "", "share of expert uses found in the cache while decoding; null if nothing streams"),
    Column("bytes_per_token", "float", "bytes", "read from the disk for each decoded token"),
    Column("prefill_tok_s", "float", "tokens/s", "speed of the prompts"),
    Column("nll", "float", "nats", "mean negative log-likelihood of the scored tokens"),
    Column("perplexity_se", "float", "", "standard error of perplexity, taking the tokens for independent"),
    Column("scored_tokens", "int", "", "tokens that nll is the mean of, prompts and continuations"),
    Column("decode_tokens", "int", "", "tokens that speed and counters cover"),
    Column("timed_nll", "float", "nats", "mean over the timed texts alone: what lossless knobs must not change"),
    Column("decode_ms_p50", "float", "ms", "wall time of a decoded token, its forward pass alone: median"),
    Column("decode_ms_p95", "float", "ms", "the same, 95th percentile"),
    Column("io_ms_per_token", "float", "ms", "of it waited for reads, mean"),
    Column("sync_ms_per_token", "float", "ms", "of it waited for the routers' choices, queued compute included, mean"),
    Column("compute_ms_per_token", "float", "ms", "what is left without these and the time to change widths, mean"),
    Column("mlx_peak_gb", "float", "GB", "high-water mark of MLX's own allocations"),
    Column("hits", "int", "", "expert uses found in the cache while decoding"),
    Column("misses", "int", "", "expert uses that had to be read while decoding"),
    Column("reads", "int", "", "read calls while decoding"),
    Column("bytes_read", "int", "bytes", "read while decoding"),
    Column("io_ms", "float", "ms", "time that decoding waited for reads, in all"),
    Column("sync_ms", "float", "ms", "time that decoding waited for the routers' choices, in all"),
    Column("disk_bytes_read", "int", "bytes", "had from the disk while decoding, as the system counts it for the process"),
    Column("page_cache_share", "float", "", "share of bytes_read that did not come from the disk; null if nothing was read"),
    Column("prefetch_issued", "int", "", "experts read ahead of their use"),
    Column("prefetch_useful", "int", "", "of these, used by the layer they were read for"),
    Column("prefetch_recall", "float", "", "share of the experts used that prefetch foretold, cached or not"),
    Column("prefetch_whole_set", "float", "", "share of the layers all of whose experts it foretold"),
    Column("prefetch_precision", "float", "", "bytes it read that were used, as a share of all it read"),
    Column("prefetch_coverage", "float", "", "share of the misses that it took away"),
    Column("prefetch_hidden_ms", "float", "ms", "how long its useful reads had run when they were asked for, in all"),
    Column("prefetch_wasted_bytes", "int", "bytes", "read by it and not used"),
    Column(
        "passes_per_window",
        "float",
        "",
        "passes that a window of layers took, 1 if nothing was missing; null if sync_window=1",
    ),
    Column("void_layers", "int", "", "layers computed in vain, behind the first that missed an expert"),
    Column("foreseen_share", "float", "", "share of the experts behind a window's miss that its void passes had shown"),
    Column("swapped", "int", "", "expert uses that cache_prior changed to a cached expert while decoding"),
    Column("lowbit", "int", "", "expert uses that cold_lowbit had computed at a store's lowest level while decoding"),
    Column("raised", "int", "", "experts of which cold_lowbit then read the rest, because a token gave them more weight"),
    Column("dropped", "int", "", "expert uses that cold_drop left out while decoding"),
    Column("dropped_share", "float", "", "their share of the gate weight, of all layers; null if nothing streams"),
    Column("slots", "int", "", "experts that fit into the cache, over all layers"),
    Column("cached_share", "float", "", "slots as a share of all routed experts"),
    Column("average_bits", "float", "bits", "of the routed experts' weights, all of them; scales and biases not counted"),
    Column("plan_fingerprint", "str", "", "fingerprint of every expert's bits; null if all have the same"),
    Column("warm_up_tokens", "int", "", "decoded before the clock started"),
    Column("timed_tokens", "int", "", "to be decoded against the clock; null: all continuations"),
    Column("page_cache", "str", "", "how the run began: cold, warm or as_is"),
    Column("page_cached_before", "float", "", "share of the checkpoint's files in the page cache before the run"),
    Column("page_cached_after", "float", "", "and after it"),
    Column("load_before", "float", "cores", "busy cores before the run: the load of others"),
    Column("load_during", "float", "cores", "busy cores during the run without those of the run itself"),
    Column("available_gb_before", "float", "GB", "memory available before the run"),
    Column("thermal_state_before", "str", "", "as thermal_state, before the run"),
    Column("temperature_c_before", "float", "°C", "as temperature_c, before the run"),
    Column("power_source_before", "str", "", "as power_source, before the run"),
    Column("waited_s", "float", "s", "waited for a cool and quiet machine, and to cool down"),
    Column("thermal_state", "str", "", "after the measurement: nominal, fair, serious or critical (macOS)"),
    Column("temperature_c", "float", "°C", "of the hottest zone after the measurement (Linux)"),
    Column("throttle_events", "int", "", "of heat during the measurement, as the logical cores count them (Linux)"),
    Column("power_source", "str", "", "after the measurement: ac, battery or ups"),
    Column("memory_pressure", "str", "", "after the measurement: normal, warning or critical (macOS)"),
    Column("swap_used_bytes", "int", "bytes", "swap of the machine in use after the measurement"),
    Column("swap_in_bytes", "int", "bytes", "swapped in during the measurement, whole machine"),
    Column("swap_out_bytes", "int", "bytes", "swapped out during the measurement, whole machine"),
    Column("predicted_peak_gb", "float", "GB", "foreseen by arithmetic before the run: weights alone"),
    Column("seen_peak_gb", "float", "GB", "high-water mark as watched from outside, whatever the trial's fate"),
    Column("wall_s", "float", "s", "the whole trial: start, load, measure"),
    Column("started_at", "time", "UTC", "start of the trial"),
    Column("study", "str", "", "name of the study"),
    Column("seed", "int", "", "the study's seed"),
    Column("sampler", "str", "", "sampler in use"),
    Column("sampler_seed", "int", "", "its seed for this setting"),
    Column("space", "str", "", "fingerprint of search space and fixed knobs"),
    Column("judge", "str", "", "fingerprint of texts and metric; rows of different judges are not comparable"),
    Column("quality", "str", "", "the judge's file, and how many of its texts if not all"),
    Column("mode", "str", "", "which path of the engine ran, e.g. streamed float32 cpu"),
    Column("model", "str", "", "name of the model: that of the checkpoint's folder, or as the study says"),
    Column("architecture", "str", "", "model_type of the checkpoint"),
    Column("model_fingerprint", "str", "", "fingerprint of the checkpoint, whatever its name"),
    Column("device", "str", "", "what computed: the GPU, or the processor with its cores; in older rows a label"),
    Column("backend", "str", "", "where MLX computed: cpu, cuda or metal; null if the engine does not say"),
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


def objectives_of(df: Any) -> dict[str, Direction]:
    """The objectives that the rows of a data frame share. Raises `ResultsError` if there are several sets."""
    said = set(df["objectives"].dropna().unique()) if "objectives" in df else set()
    if len(said) > 1:
        raise ResultsError(f"rows with different objectives ({'; '.join(sorted(said))}) cannot be compared; keep one's")
    return {name: METRICS[name] for name in said.pop().split(",")} if said else dict(OBJECTIVES)


SCHEMA = pa.schema(
    [
        pa.field(c.name, KINDS[c.kind], c.name not in ("trial", "status", "origin"), {"unit": c.unit, "text": c.text})
        for c in COLUMNS
    ],
    {"schema_version": str(SCHEMA_VERSION)},
)


TIMES = tuple(c.name for c in COLUMNS if c.kind == "time")


def packed(row: Mapping[str, Any]) -> str:
    """A row as text, for the storage."""
    return json.dumps({k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items() if v is not None})


def unpacked(text: str) -> dict[str, Any]:
    """The row of such a text."""
    said = json.loads(text)
    return {c.name: said.get(c.name) for c in COLUMNS} | {k: datetime.fromisoformat(said[k]) for k in TIMES if k in said}


def markdown() -> str:
    """The table of `results/README.md`."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{c.name}` | {c.kind} | {c.unit} | {c.text} |" for c in COLUMNS])


if __name__ == "__main__":
    print(markdown())
