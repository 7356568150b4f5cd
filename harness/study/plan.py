"""The plan of a study: its configuration checked against engine, checkpoint, judge and machine before anything runs.

Whatever a user can get wrong is found here, in one line, before the results folder is touched.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engine import CheckpointError, Judge, Knobs
from engine.checkpoint.fingerprint import State, another, folder_state
from engine.checkpoint.naming import model_name
from engine.knobs import CACHE_DEPENDENT, DEFAULTS, idle
from engine.measure.protocol import PAGE_CACHE
from engine.model.backend import backend, device_name
from harness import ConfigError, ResultsError
from harness.machine import identity as machine
from harness.results.metrics import QUALITY, Direction
from harness.space.space import Space, canonical, space_from_config

from .constraints import Constraint, constraints_from_config, objectives_from_config
from .engines import CommandEngine, PythonEngine, engine_at
from .titles import title

LEAST = {
    **{"budget.trials": 1, "budget.hours": 0, "budget.trial_timeout_s": 1, "budget.hang_s": 1, "rounds": 1},
    **{"quality.most": 1, "study.seed": 0, "sampler.random_every": 0, "protocol.warm_up_tokens": 0},
    **{"protocol.timed_tokens": 1, "protocol.repeats": 1, "protocol.cool_down_s": 0, "sentinel.every": 0},
    **{"sentinel.drift": 0, "confirm.share": 0, "confirm.runs": 1, "proposer.every": 1, "proposer.timeout_s": 1},
    **{"recommend.max_loss": 0, "recommend.memory_gb": 0},
    **{"guards.min_disk_gb": 0, "guards.max_load": 0, "guards.wait_s": 0, "storage.stale_s": 1},
}
SAME_MEMORY = 0.1  # share by which a device's memory may be off, for GB and GiB
SHARES = ("confirm.within", "confirm.error", "protocol.stop_error", "guards.min_free_memory_share", "recommend.speed_share")


@dataclass(frozen=True)
class Plan:
    """All that the loop needs to know, decided."""

    config: Mapping[str, Any]
    space: Space
    anchors: list[dict[str, Any]]  # Optuna's parameters of the first trials
    engine: PythonEngine | CommandEngine
    checkpoint: Path
    files: State  # of the checkpoint, when it was opened
    judge: Judge  # the texts in use
    judge_name: str
    architecture: str
    model_fingerprint: str
    reference_gb: float  # predicted peak with everything resident
    limit_gb: float
    folder: Path
    objectives: Mapping[str, Direction]
    constraints: tuple[Constraint, ...]
    bounds: Mapping[str, float]  # what the names in a space's bounds stand for, GB or cores

    @property
    def rules(self) -> dict[str, Any]:
        """What `front` and `next_sweep` go by."""
        return {name: self.config["confirm"][name] for name in ("runs", "within", "error")}

    @property
    def name(self) -> str:
        return str(self.config["study"]["name"])

    @property
    def model(self) -> str:
        return str(self.config["model"]["name"] or model_name(self.checkpoint))

    @property
    def computes_on(self) -> dict[str, str | None]:
        """Device and backend of this project's engine; of another one they are not known before it says so."""
        ours = self.config["engine"]["module"] == "engine" and self.config["engine"]["command"] is None
        return {"device": device_name() if ours else None, "backend": backend() if ours else None}

    @property
    def headline(self) -> str:
        """What this study is, in a line."""
        said = {"model": self.model, **self.computes_on, **machine.identity(), "ssd_gbps": self.space.fixed.get("ssd_gbps")}
        device = self.config["device"]
        other = device["memory_gb"] and abs(device["memory_gb"] / machine.memory_gb() - 1) > SAME_MEMORY
        limits = f", limits of {device['name']}" if other else ""
        return f"{self.name}: {title({k: [v] for k, v in said.items()})}{limits}, judge {self.judge_name}"

    @property
    def seed(self) -> int:
        return int(self.config["study"]["seed"])

    @property
    def trials(self) -> int:
        return int(self.config["budget"]["trials"])

    @property
    def rounds(self) -> int:
        return int(self.config["rounds"])

    @property
    def json_prompts(self) -> str | None:
        """The file of the JSON prompts, if a constraint asks for what they tell."""
        wanted = any(c.metric == "json_valid" for c in self.constraints)
        return str(Path(self.config["quality"]["json_prompts"]).expanduser().absolute()) if wanted else None

    @property
    def wants_kl(self) -> bool:
        return "kl" in self.objectives or any(c.metric == "kl" for c in self.constraints)

    @property
    def scored(self) -> bool:
        """Whether an objective is of quality."""
        return any(name in QUALITY for name in self.objectives)

    @property
    def memory_bound_gb(self) -> float:
        """What a trial may take at most, by the machine and by the study's constraints."""
        bounds = [c.number for c in self.constraints if c.metric == "peak_memory_gb" and c.upper and not c.relative]
        return min([self.limit_gb, *bounds])

    @property
    def protocol(self) -> dict[str, Any]:
        """What of the protocol every measurement of the study follows."""
        return {k: self.config["protocol"][k] for k in ("warm_up_tokens", "timed_tokens", "page_cache")}

    @property
    def space_fingerprint(self) -> str:
        return hashlib.sha256(canonical(self.identity()["space"]).encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """What rows of one study have in common; another value of any of these is another study."""
        return {
            "model": self.model_fingerprint,
            "judge": self.judge.fingerprint,
            "engine": self.config["engine"]["command"] or self.config["engine"]["module"],
            "objectives": ",".join(self.objectives),
            "constraints": [c.text for c in self.constraints],
            "protocol": self.protocol,
            "seed": self.seed,
            "space": {"search_space": self.space.as_dict(), "knobs": dict(self.space.fixed)},
            "machine": {
                **{name: machine.identity()[name] for name in ("cpu", "cores")},
                **{name: value for name, value in self.computes_on.items() if value is not None},
            },
        }

    def check_model(self, known: State) -> State:
        """The state of the checkpoint's files now; it was `known`. Raises `CheckpointError` if it is another model."""
        try:
            now = folder_state(self.checkpoint)
        except OSError as e:
            raise CheckpointError(f"checkpoint {self.checkpoint} cannot be read any more ({e.strerror}); put it back") from e
        if now != known:
            found = str(_engine(self.config["engine"]).footprint(self.checkpoint, Knobs()).fingerprint)
            if found != self.model_fingerprint:
                raise CheckpointError(
                    f"checkpoint {self.checkpoint} was exchanged while the study ran: its fingerprint was "
                    f"{self.model_fingerprint} and is now {found}, {another(self.model_fingerprint, found)}; put the files "
                    "back, or start another study with study.name=OTHER"
                )
        return now

    def forbidden(self, values: Mapping[str, Any]) -> tuple[str | None, float]:
        """Why a setting cannot run (None if it can), foreseen by arithmetic, and its predicted peak in GB."""
        knobs = Knobs.from_mapping(values)
        need = self.engine.footprint(self.checkpoint, knobs)
        if knobs.cache_gb is not None and knobs.cache_gb < need.one_token_gb:
            return (
                f"cache_gb={knobs.cache_gb:g} is below one token's experts ({need.one_token_gb:.4g} GB)",
                need.predicted_peak_gb,
            )
        if need.predicted_peak_gb > self.memory_bound_gb:
            return (
                f"would take {need.predicted_peak_gb:.3g} GB, above the limit of {self.memory_bound_gb:.3g} GB",
                need.predicted_peak_gb,
            )
        return None, need.predicted_peak_gb


def plan_from_config(config: DictConfig) -> Plan:
    """Check a composed configuration. Raises `ConfigError`, `CheckpointError` or `JudgeError`."""
    c: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _check_numbers(c)
    objectives = objectives_from_config(c["objectives"])
    constraints = constraints_from_config(c["constraints"], c["quality"]["json_prompts"])
    judge_path = Path(c["quality"]["text"]).expanduser()
    judge, judge_name = _some(Judge.load(judge_path), judge_path.stem, c["quality"]["most"])
    engine = _engine(c["engine"])
    checkpoint = Path(c["model"]["path"]).expanduser().absolute()
    if not checkpoint.exists():
        raise CheckpointError(_needs(c, checkpoint))
    files = folder_state(checkpoint)
    whole = engine.footprint(checkpoint, Knobs())
    memory = c["device"]["memory_gb"] or machine.memory_gb()
    limit = memory * c["device"]["usable_share"]
    bounds = {
        "one_token": whole.one_token_gb,
        "all_experts": whole.all_experts_gb,
        "memory_gb": memory,
        "limit_gb": limit,
        "cores": machine.identity()["cores"],
    }
    space = space_from_config(c["search_space"], c["knobs"], bounds)
    anchors = [_anchor(space, i, values) for i, values in enumerate(c["study"]["anchors"])]
    space = dataclasses.replace(space, footprint=functools.cache(functools.partial(engine.footprint, checkpoint)))
    folder = Path(c["results_dir"]).expanduser().absolute() / c["study"]["name"]
    plan = Plan(
        c, space, [*space.anchors(), *anchors], engine, checkpoint, files, judge, judge_name,
        whole.architecture, whole.fingerprint, whole.predicted_peak_gb, limit, folder, objectives, constraints, bounds,
    )  # fmt: skip
    _check_cache(plan)
    _check_held(plan)
    _check_together(plan)
    return plan


def _check_held(plan: Plan) -> None:
    """A knob that is held has an effect in some of the first settings."""
    settings = [plan.space.values(params) for params in plan.anchors]
    for name, value in plan.space.fixed.items():
        if value in (None, DEFAULTS[name]) or any(s.get(name) not in (None, DEFAULTS[name]) for s in settings):
            continue
        others = {**DEFAULTS, **{k: v for k, v in settings[0].items() if v is not None}}
        if (need := idle({**others, name: value}).get(name)) is not None:
            met = f"{need.knob}={others[need.knob]}"
            raise ConfigError(f"knobs.{name}={value} {need.refusal.format(met)}")
        if name == "cold_lowbit":
            raise ConfigError(
                f"knobs.cold_lowbit={value:g} has no effect: this checkpoint has no level below its experts' bits; pack it "
                "with two levels (python -m engine pack)"
            )


def _check_together(plan: Plan) -> None:
    """What one part of the configuration asks of another."""
    c = plan.config
    if c["storage"]["url"] and plan.rounds > 1:
        raise ConfigError(
            f"rounds={plan.rounds} with storage.url: machines that share a study search one space; set rounds=1"
        )
    if plan.reference_gb > plan.limit_gb:
        for one in plan.constraints:
            if one.relative and one.metric not in QUALITY:
                raise ConfigError(
                    f"constraint '{one.text}' needs the reference, which would take {plan.reference_gb:.3g} GB of at most "
                    f"{plan.limit_gb:.3g} GB; give a number"
                )
    lossy = [e.name for e in plan.space.entries if e.name in CACHE_DEPENDENT]
    if lossy and plan.space.fixed.get("prefill_chunk") != 1:
        raise ConfigError(
            f"search_space.{lossy[0]}: its cost shows in decoded tokens, and the judge's prompts are prefilled in "
            "chunks; score them token by token with knobs.prefill_chunk=1"
        )


def _check_numbers(c: Any) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", c["study"]["name"]):
        raise ConfigError(f"study.name={c['study']['name']} names a folder: use letters, digits, '.', '_' and '-'")
    device = c["device"]
    for key, least in LEAST.items():
        group, _, name = key.rpartition(".")
        value = c[group][name] if group else c[name]
        if value is not None and not value >= least:
            raise ConfigError(f"{key}={value:g} is below {least}; raise it")
    for key in SHARES:
        group, _, name = key.rpartition(".")
        if not 0 <= c[group][name] <= 1:
            raise ConfigError(f"{key}={c[group][name]:g} is outside 0 .. 1; give a share")
    if c["protocol"]["page_cache"] not in PAGE_CACHE:
        raise ConfigError(
            f"protocol.page_cache={c['protocol']['page_cache']} is unknown; choose one of: {', '.join(PAGE_CACHE)}"
        )
    if device["memory_gb"] is not None and not device["memory_gb"] > 0:
        raise ConfigError(
            f"device.memory_gb={device['memory_gb']:g} is not above 0; give GB, or null for what this machine has"
        )
    if not 0 < device["usable_share"] <= 1:
        raise ConfigError(f"device.usable_share={device['usable_share']:g} is outside 0 .. 1; give a share of memory_gb")


def _some(judge: Judge, name: str, most: int | None) -> tuple[Judge, str]:
    """At most `most` of a judge's texts, evenly chosen, and a name that says so."""
    count = len(judge.texts)
    if most is None or most >= count:
        return judge, name
    return Judge(tuple(judge.texts[i * count // most] for i in range(most))), f"{name} ({most} of {count} texts)"


def _anchor(space: Space, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return space.params(values)
    except ConfigError as e:
        raise ConfigError(f"study.anchors[{number}]: {e}") from e


def _engine(seam: Mapping[str, Any]) -> PythonEngine | CommandEngine:
    if seam["command"] is not None and seam["module"] != "engine":
        raise ConfigError(f"engine.command and engine.module={seam['module']} are two engines; give one of them")
    return engine_at(seam["module"]) if seam["command"] is None else CommandEngine(seam["command"])


def _needs(c: Any, checkpoint: Path) -> str:
    """One line for a checkpoint that is not there; a few lines for one that has to be fetched."""
    model, device = c["model"], c["device"]
    if not model["about"]:
        return f"checkpoint {checkpoint} is not there; name its folder with model.path=DIR"
    lines = [f"study={c['study']['name']} needs a checkpoint that is not at {checkpoint}:"]
    lines.append(f"  which    {model['about']}")
    if model["size_gb"]:
        lines.append(f"  disk     {model['size_gb']:g} GB, on the fastest disk there is: it is streamed from there")
    lines.append("  where    put it there, or name its folder: model.path=DIR")
    if device["memory_gb"]:
        usable = device["memory_gb"] * device["usable_share"]
        lines.append(f"  memory   {device['memory_gb']:g} GB, of which a trial uses at most {usable:g} ({device['note']})")
    lines.append("  now      python -m harness.search study=demo runs on the small model of this repository")
    return "\n".join(lines)


def _check_cache(plan: Plan) -> None:
    """The lowest cache_gb must be legal at least where experts are smallest."""
    entry = next((e for e in plan.space.entries if e.name == "cache_gb"), None)
    if entry is None:
        key, low = "cache_gb", plan.space.fixed.get("cache_gb")
    else:
        key, low = "search_space.cache_gb.low", entry.ends()[0]
    if low is None:
        return
    points = [Knobs.from_mapping(plan.space.values(p)) for p in plan.anchors]
    least = min(plan.engine.footprint(plan.checkpoint, k).one_token_gb for k in points if k.cache_gb is not None)
    if low < least:
        raise ConfigError(f"{key}={low:g} is below one token's experts ({least:.4g} GB for {plan.model}); raise it")


def check_writable(folder: Path) -> None:
    """Make the study's folder. Raises `ResultsError` if nothing can be written there."""
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise ResultsError(
            f"results_dir={folder.parent} is not writable ({e.strerror}); choose another with results_dir=DIR"
        ) from e
