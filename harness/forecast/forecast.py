"""Forecast: speed, memory, disk and times of a model on a machine, over cache sizes and bits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.system.shipped import EXPERIMENTS

from .interval import Interval, interval, spread
from .locality import Worlds
from .machine.figures import Machine
from .speed import Work
from .target import Target, Width
from .trial import Besides

SIZES = 5  # cache sizes, if none is given
CONTEXT = 512  # tokens that memory is planned for
ON_CPU, ON_GPU = 512, 2048  # tokens of a pass over a prompt
PROMPTS = (512, 8192)  # tokens, of which the time to the first token is given
RUN_S = 8 * 3600.0
WARM_UP_TOKENS, TIMED_TOKENS, COOL_DOWN_S = 8, 64, 10.0  # of a run of study=auto
TEXTS = EXPERIMENTS / "prompts" / "headrace_v1.yaml"
CHARACTERS = 4.0  # of a token of these texts, about
UNKNOWN_GB = 1.0  # of what is neither weights nor experts, for an architecture that mlx-lm lacks


@dataclass(frozen=True)
class Row:
    """One cache size at one width. GB a token are the mean over the possible routings, with the least and the most."""

    bits: int
    own: bool
    cache_gb: float
    slots: float
    cached_share: float
    memory_gb: float
    fits: bool
    read_gb: float
    read_gb_range: tuple[float, float]
    tok_s: Interval
    parts_ms: dict[str, float]

    @property
    def limit(self) -> str:
        """What takes most of a token: disk, compute, sync or misses."""
        return max(self.parts_ms, key=lambda name: self.parts_ms[name])


@dataclass(frozen=True)
class Forecast:
    """All that is forecast. `best` is the fastest setting of the widest width that fits, or the smallest cache if none
    fits. Seconds of a trial are those of a run of study=auto with that setting: `trial_s` where its lossy knobs are known,
    `new_trial_s` where its prompts are computed and its quality is scored."""

    model: Target
    machine: Machine
    worlds: tuple[str, ...]
    own_trace: bool
    parts_gb: dict[str, float]
    limit_gb: float
    rows: tuple[Row, ...]
    best: Row
    disk_gb: dict[int, float]
    ttft_s: dict[int, float]
    ttft_is_least: bool
    trial_s: float
    new_trial_s: float
    besides: Besides | None = None  # of a trial, where a study has measured it; None: arithmetic

    @property
    def trials(self) -> int:
        """Trials in an unattended run of 8 hours, if their lossy settings are known."""
        return int(RUN_S // self.trial_s)

    @property
    def least_trials(self) -> int:
        """Trials in an unattended run of 8 hours, if each has a new lossy setting."""
        return int(RUN_S // self.new_trial_s)


def forecast(
    model: Target, machine: Machine, worlds: Worlds, cache_gb: Sequence[float] | None = None, besides: Besides | None = None
) -> Forecast:  # fmt: skip
    """The forecast. `besides`: what a trial took beside its timed tokens, where that is measured. Raises `HeadraceError` for
    a cache below one token's experts."""
    fixed = _parts(model, machine)
    limit = float(machine.device.limit_gb)
    rows = tuple(
        _row(model, machine, worlds, width, size, fixed, limit)
        for width in model.widths
        for size in _sizes(model, machine, width, cache_gb, limit - sum(fixed.values()))
    )
    own = [row for row in rows if row.bits == model.widths[0].bits]
    fitting = [row for row in own if row.fits]
    best = max(fitting, key=lambda row: row.tok_s.middle) if fitting else min(own, key=lambda row: row.cache_gb)
    parts = {"resident": fixed["resident"], "experts": best.cache_gb, **{n: v for n, v in fixed.items() if n != "resident"}}
    width = next(one for one in model.widths if one.bits == best.bits)
    times = {n: _ttft(model, machine, worlds, width, best, n) for n in PROMPTS}
    return Forecast(
        model, machine, worlds.names, model.trace is not None, parts, limit, rows, best,
        {one.bits: model.disk_gb(one) for one in model.widths}, times, machine.probed is None,
        *_trials_s(model, machine, worlds, width, best, besides), besides,
    )  # fmt: skip


def _parts(model: Target, machine: Machine) -> dict[str, float]:
    """The memory besides the experts, GB by part; of a profile from this machine's arithmetic, with floats of its width."""
    resident = {"resident": model.resident_gb(widened=machine.widened)}
    if model.checkpoint is None:
        return resident | {"other": UNKNOWN_GB}
    from engine.model.backend import compute_dtype
    from engine.plan.footprint import footprint

    knobs = Knobs(cache_gb=model.layers * model.top_k * model.slot_gb(model.widths[0], widened=machine.widened))
    found = footprint(model.checkpoint, dataclasses.replace(knobs, prefill_chunk=CONTEXT), CONTEXT).parts_gb
    share = 1.0 if machine.widened or compute_dtype() is None else 0.5
    return resident | {
        "kv": found.kv * share, "activations": found.activations * share, "staging": found.staging,
        "mlx_cache": found.mlx_cache, "process": found.process,
    }  # fmt: skip


def _sizes(
    model: Target, machine: Machine, width: Width, given: Sequence[float] | None, room: float
) -> list[float]:  # fmt: skip
    """Cache sizes at equal ratios, from one token's experts to the largest that fits; or those given."""
    slot = model.layers * model.slot_gb(width, widened=machine.widened)
    least, whole = model.top_k * slot, model.experts * slot
    if given is not None:
        if min(given) < least * (1 - 1e-6):
            raise HeadraceError(
                f"--cache-gb {min(given):g} is below one token's experts ({least:.4g} GB for {model.name} at {width.bits} "
                "bits); give more"
            )
        return [min(size, whole) for size in given]
    most = min(whole, max(room, least))
    sizes = [least * (most / least) ** (n / (SIZES - 1)) for n in range(SIZES)] if most > least * 1.01 else [least]
    return sizes


def _row(
    model: Target, machine: Machine, worlds: Worlds, width: Width, cache_gb: float, fixed: dict[str, float], limit: float
) -> Row:  # fmt: skip
    slots = min(float(model.experts), cache_gb / (model.layers * model.slot_gb(width, widened=machine.widened)) * (1 + 1e-9))
    token_gb = model.layers * model.top_k * width.expert_bytes / GB
    missed = tuple((worlds.missed([slots])[:, 0] * token_gb).tolist())
    work = Work(
        (model.resident_bytes - model.embedding_bytes) / GB + token_gb + fixed.get("kv", 0.0), missed,
        tuple((worlds.layers_missed([slots])[:, 0] * model.layers).tolist()),
        model.layers if slots < model.experts else 0, model.all_layers,
    )  # fmt: skip
    rates = machine.rates(work)
    times = rates.by_world(work)
    parts = rates.middle(work)
    locality = math.hypot(spread(times), worlds.missed_sd * parts["disk"] / sum(parts.values()))
    sds = {"locality": locality, "disk": rates.disk_sd, "compute": rates.compute_sd, "inadequacy": rates.inadequacy_sd}
    memory = cache_gb + sum(fixed.values())
    return Row(
        bits=width.bits, own=width.own, cache_gb=cache_gb, slots=slots, cached_share=slots / model.experts,
        memory_gb=memory, fits=memory <= limit * (1 + 1e-6), read_gb=float(np.mean(missed)),
        read_gb_range=(min(missed), max(missed)),
        tok_s=interval(1000 / math.exp(float(np.mean(np.log(times)))), sds), parts_ms=parts,
    )  # fmt: skip


def _ttft(model: Target, machine: Machine, worlds: Worlds, width: Width, row: Row, tokens: int) -> float:
    """Seconds from a prompt to its first token. The cache is empty at first; later passes find a share in it."""
    every_gb = model.layers * model.experts * width.expert_bytes / GB
    token_gb = model.layers * model.top_k * width.expert_bytes / GB
    rates = machine.rates(Work(1.0, (token_gb,), (model.layers,), model.layers, model.all_layers))
    seconds, cached = 0.0, 0.0
    chunk = ON_CPU if machine.widened else ON_GPU
    for begin in range(0, tokens, chunk):
        some = min(chunk, tokens - begin)
        used_gb = worlds.prompt_share(some) * every_gb
        seconds += used_gb * (1 - cached) / rates.disk_gbps
        cached = row.cached_share
        if machine.probed is not None:
            seconds += some * model.all_layers * machine.probed.prompt_layer_ms / 1000
        else:
            resident_gb = (model.resident_bytes - model.embedding_bytes) / GB
            seconds += (resident_gb + used_gb) / rates.gbps + model.all_layers * rates.layer_ms / 1000
    return seconds + rates.rest_ms / 1000


def _trials_s(
    model: Target, machine: Machine, worlds: Worlds, width: Width, row: Row, besides: Besides | None
) -> tuple[float, float]:  # fmt: skip
    """Seconds of a run of study=auto, with a lossy setting that is known, and with a new one.

    Both are what a study measured beside the timed tokens, and these at the forecast speed. Without one, the resident
    weights are read. Then a new lossy setting computes all evaluation texts; a known one restores the prompts of the timed
    tokens and fills the cache for each, at most with what it holds.
    """
    if besides is not None:
        measured = besides.seconds + besides.tokens / row.tok_s.middle
        return measured, measured
    rates = machine.rates(Work(1.0, (1.0,), (model.layers,), model.layers, model.all_layers))
    prompts = sum(_ttft(model, machine, worlds, width, row, prompt) for prompt, _ in text_tokens())
    whole = prompts + (WARM_UP_TOKENS + sum(after for _, after in text_tokens())) / row.tok_s.middle
    every_gb = model.layers * model.experts * width.expert_bytes / GB
    filled, left = 0.0, TIMED_TOKENS
    for prompt, after in text_tokens():
        if left > 0:
            filled += min(worlds.prompt_share(prompt), row.cached_share) * every_gb / rates.disk_gbps
        left -= after
    known = filled + (WARM_UP_TOKENS + TIMED_TOKENS) / row.tok_s.middle
    around = model.resident_bytes / GB / rates.disk_gbps + COOL_DOWN_S
    return around + min(known, whole), around + whole


@functools.cache
def text_tokens() -> tuple[tuple[int, int], ...]:
    """Tokens of the prompt and of the continuation of each evaluation text, about."""
    texts = yaml.safe_load(TEXTS.read_text(encoding="utf-8"))
    return tuple(
        (round(len(one["prompt"]) / CHARACTERS), round(len(one["continuation"]) / CHARACTERS)) for one in texts
    )  # fmt: skip


def as_dict(found: Forecast) -> dict[str, Any]:
    """The forecast as a JSON-ready document."""
    device = {name: value for name, value in dataclasses.asdict(found.machine.device).items() if value not in (None, "")}
    return {
        "headrace_forecast": 1,
        "model": {
            "name": found.model.name, "title": found.model.title, "layers": found.model.layers,
            "experts": found.model.experts, "top_k": found.model.top_k, "own_trace": found.own_trace,
        },
        "device": device, "figures": list(found.machine.lines), "localities": list(found.worlds),
        "memory_gb": found.parts_gb, "memory_limit_gb": found.limit_gb, "disk_gb": found.disk_gb,
        "rows": [_row_dict(row) for row in found.rows], "best": _row_dict(found.best), "ttft_s": found.ttft_s,
        "ttft_is_least": found.ttft_is_least, "trial_s": found.trial_s, "new_trial_s": found.new_trial_s,
        "trial_measured": None if found.besides is None else dataclasses.asdict(found.besides),
        "trials_in_8_hours": found.trials,
        "least_trials_in_8_hours": found.least_trials,
    }  # fmt: skip


def _row_dict(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "tok_s": {**dataclasses.asdict(row.tok_s)}, "limit": row.limit}
