"""Checks of a study's configuration: each raises one line that names the value, the limit and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.knobs import CACHE_DEPENDENT, DEFAULTS, idle
from engine.measure.protocol import PAGE_CACHE, PREFILL, PREFILLED, STATES, STEADY
from harness import ConfigError, ResultsError
from harness.results.metrics import QUALITY
from harness.space.space import Space

from .constraints import Constraint

LEAST = {
    **{"budget.trials": 1, "budget.hours": 0, "budget.trial_timeout_s": 1, "budget.hang_s": 1, "rounds": 1},
    **{"quality.most": 1, "study.seed": 0, "sampler.random_every": 0, "protocol.warm_up_tokens": 0},
    **{"protocol.timed_tokens": 1, "protocol.repeats": 1, "protocol.cool_down_s": 0, "sentinel.every": 0},
    **{"sentinel.drift": 0, "confirm.share": 0, "confirm.runs": 1, "proposer.every": 1, "proposer.timeout_s": 1},
    **{"recommend.max_loss": 0, "recommend.memory_gb": 0},
    **{"guards.min_disk_gb": 0, "guards.max_load": 0, "guards.wait_s": 0, "storage.stale_s": 1},
}
SHARES = (
    "confirm.within",
    "confirm.error",
    "protocol.stop_error",
    "protocol.stop_scoring_error",
    "guards.min_free_memory_share",
    "recommend.speed_share",
)


def check_numbers(c: Mapping[str, Any]) -> None:
    """Check names and numbers of a configuration, each by itself. Raises `ConfigError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", c["study"]["name"]):
        raise ConfigError(f"study.name={c['study']['name']} names a folder: use letters, digits, '.', '_' and '-'")
    for key, least in LEAST.items():
        group, _, name = key.rpartition(".")
        value = c[group][name] if group else c[name]
        if value is not None and not value >= least:
            raise ConfigError(f"{key}={value:g} is below {least}; raise it")
    for key in SHARES:
        group, _, name = key.rpartition(".")
        if not 0 <= c[group][name] <= 1:
            raise ConfigError(f"{key}={c[group][name]:g} is outside 0 .. 1; give a share")
    for key, known in (("page_cache", PAGE_CACHE), ("state", STATES), ("prefill", PREFILL)):
        if c["protocol"][key] not in known:
            raise ConfigError(f"protocol.{key}={c['protocol'][key]} is unknown; choose one of: {', '.join(known)}")
    if not c["protocol"]["kept_gb"] > 0:
        raise ConfigError(f"protocol.kept_gb={c['protocol']['kept_gb']:g} is not above 0; give GB, or protocol.prefill=real")
    device = c["device"]
    if device["memory_gb"] is not None and not device["memory_gb"] > 0:
        raise ConfigError(
            f"device.memory_gb={device['memory_gb']:g} is not above 0; give GB, or null for this machine's memory"
        )
    if not 0 < device["usable_share"] <= 1:
        raise ConfigError(f"device.usable_share={device['usable_share']:g} is outside 0 .. 1; give a share of memory_gb")


def check_cache(space: Space, one_token_gb: Sequence[float], model: str) -> None:
    """Check that the lowest `cache_gb` holds one token's experts at the smallest width of the anchors."""
    entry = next((e for e in space.entries if e.name == "cache_gb"), None)
    if entry is None:
        key, low = "cache_gb", space.fixed.get("cache_gb")
    else:
        key, low = "search_space.cache_gb.low", entry.ends()[0]
    if low is not None and low < (least := min(one_token_gb)):
        raise ConfigError(f"{key}={low:g} is below one token's experts ({least:.4g} GB for {model}); raise it")


def check_fixed_knobs(space: Space, settings: Sequence[Mapping[str, Any]]) -> None:
    """Check that each fixed knob has an effect in at least one of the anchors' settings."""
    for name, value in space.fixed.items():
        if value in (None, DEFAULTS[name]) or any(s.get(name) not in (None, DEFAULTS[name]) for s in settings):
            continue
        others = {**DEFAULTS, **{k: v for k, v in settings[0].items() if v is not None}}
        if (need := idle({**others, name: value}).get(name)) is not None:
            met = f"{need.knob}={others[need.knob]}"
            raise ConfigError(f"knobs.{name}={value} {need.refusal.format(met)}")


def check_reference(constraints: Sequence[Constraint], reference_gb: float, limit_gb: float) -> None:
    """Check that a constraint relative to the reference has one: all experts resident must fit into `limit_gb`.

    Quality metrics are exempt: every setting without a lossy knob has the reference's quality.
    """
    for c in constraints:
        if reference_gb > limit_gb and c.relative and c.metric not in QUALITY:
            raise ConfigError(
                f"constraint '{c.text}' needs the reference, which takes {reference_gb:.3g} GB of at most "
                f"{limit_gb:.3g} GB; give a number"
            )


def check_together(c: Mapping[str, Any], space: Space) -> None:
    """Check settings that exclude each other."""
    if c["storage"]["url"] and c["rounds"] > 1:
        raise ConfigError(
            f"rounds={c['rounds']} with storage.url: machines that share a study search one space; set rounds=1"
        )
    state, engine = c["protocol"]["state"], c["engine"]["command"] or c["engine"]["module"]
    if state != PREFILLED and engine != "engine":
        raise ConfigError(
            f"protocol.state={state} is a state of this engine's cache, and {engine} is another engine; set "
            f"protocol.state={PREFILLED}"
        )
    by_cache = [name for name in CACHE_DEPENDENT if name in space.fixed or name in {e.name for e in space.entries}]
    by_cache = [name for name in by_cache if space.fixed.get(name, 1) not in (None, DEFAULTS[name])]
    if state == STEADY and by_cache:
        raise ConfigError(
            f"protocol.state={STEADY} with {by_cache[0]}: its choices depend on what is cached and cannot be given; set "
            f"protocol.state={PREFILLED}, or leave {by_cache[0]} out"
        )
    lossy = [e.name for e in space.entries if e.name in CACHE_DEPENDENT]
    if lossy and space.fixed.get("prefill_chunk") != 1:
        raise ConfigError(
            f"search_space.{lossy[0]}: its loss appears in decoded tokens, but the evaluation texts are prefilled in "
            "chunks; score them token by token with knobs.prefill_chunk=1"
        )


def missing_checkpoint(c: Mapping[str, Any], checkpoint: Path) -> str:
    """One line for a missing checkpoint; a few lines for one that must be downloaded."""
    model, device = c["model"], c["device"]
    if not model["about"]:
        return f"checkpoint {checkpoint} does not exist; name its folder with model.path=DIR"
    lines = [f"study={c['study']['name']} needs a checkpoint, and {checkpoint} does not exist:"]
    lines.append(f"  model    {model['about']}")
    if model["size_gb"]:
        lines.append(f"  disk     {model['size_gb']:g} GB, on the fastest disk: experts are streamed from it")
    if model["hub"]:
        lines.append(f"  get it   hf download {model['hub']}, which is then found without model.path")
    lines.append("  path     put it there, or name its folder: model.path=DIR")
    if device["memory_gb"]:
        usable = min(device["memory_gb"] * device["usable_share"], device["gpu_memory_gb"] or math.inf)
        lines.append(
            f"  memory   {device['memory_gb']:.3g} GB, of which a trial uses at most {usable:.3g} ({device['note']})"
        )
    lines.append("  now      python -m harness.search study=demo runs on this repository's small model")
    return "\n".join(lines)


def check_writable(folder: Path) -> None:
    """Make the study's folder. Raises `ResultsError` if it is not writable."""
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise ResultsError(
            f"results_dir={folder.parent} is not writable ({e.strerror}); choose another with results_dir=DIR"
        ) from e
