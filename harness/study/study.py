"""A study: a configuration resolved against engine, checkpoint, evaluation texts and machine.

`study_from_config` finds every mistake of a user here, in one line each, before the results folder is touched. It opens the
checkpoint's headers and computes a footprint for each anchor; no weights are read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engine import CheckpointError, Judge, Knobs
from engine.checkpoint.config import model_name
from engine.checkpoint.fingerprint import State, another, folder_state
from engine.checkpoint.places.find import find_checkpoint, in_places
from engine.checkpoint.places.hub import repository
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.measure.protocol import PREFILLED, REAL
from engine.tokenizer.open import open_tokenizer
from harness import ConfigError
from harness.machine import identity as machine
from harness.machine.device import foreign_name, limits_of, this_machine
from harness.results.metrics import QUALITY, Direction
from harness.space.parse import space_from_config
from harness.space.space import Space, canonical

from .auto import KEY, Automatic, automatic, merged
from .checks import (
    check_cache,
    check_fixed_knobs,
    check_numbers,
    check_reference,
    check_together,
    missing_checkpoint,
)
from .constraints import Constraint, constraints_from_config, objectives_from_config
from .engines import CommandEngine, PythonEngine, engine_from_config, for_texts, is_own
from .rehearsal import lossless, rehearsed
from .titles import title

SINCE = {("state", PREFILLED)}  # of the protocol: what studies of earlier versions do without naming it
TOLERANCE = 0.1  # of a predicted peak; a setting that may fit is tried, and ends at the limit if it does not


@dataclass(frozen=True)
class Study:
    """All decisions of a study; the session only reads it."""

    config: Mapping[str, Any]
    space: Space
    anchors: list[dict[str, Any]]  # first trials, as Optuna's parameters
    engine: PythonEngine | CommandEngine
    checkpoint: Path
    files: State  # of the checkpoint, when it was opened
    judge: Judge  # the evaluation texts in use
    judge_name: str
    architecture: str
    model_fingerprint: str
    reference_gb: float  # predicted peak with all experts resident
    limit_gb: float
    folder: Path
    objectives: Mapping[str, Direction]
    constraints: tuple[Constraint, ...]
    bounds: Mapping[str, float]  # values of the names that a space's bounds may use, in GB or cores
    device_profile: str | None = None  # name of the limits in use, if they are not this machine's
    automatic: Automatic | None = None  # of a space that was derived

    @property
    def rules(self) -> dict[str, Any]:
        """The keyword arguments of `front` and `next_sweep`."""
        return {name: self.config["confirm"][name] for name in ("runs", "within", "error")}

    @property
    def name(self) -> str:
        return str(self.config["study"]["name"])

    @property
    def model(self) -> str:
        marked = read_rehearsal(self.checkpoint)
        return marked.model if marked else str(self.config["model"]["name"] or model_name(self.checkpoint))

    @property
    def computes_on(self) -> dict[str, str | None]:
        """Device and backend of this project's engine; None for any other engine, which reports them with its first run."""
        if not is_own(self.config["engine"]):
            return {"device": None, "backend": None}
        from engine.model.backend import backend, device_name  # needs MLX, which a report does not

        return {"device": device_name(), "backend": backend()}

    @property
    def headline(self) -> str:
        """One line: name, model, machine, limits and evaluation texts."""
        facts = {"model": self.model, **self.computes_on, **machine.identity(), "ssd_gbps": self.space.fixed.get("ssd_gbps")}
        limits = f", limits of {self.device_profile}" if self.device_profile else ""
        where = title({name: [value] for name, value in facts.items()})
        return f"{self.name}: {where}{limits}, evaluation texts {self.judge_name}"

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
        """The file of the JSON prompts; None unless a constraint needs `json_valid`."""
        wanted = any(c.metric == "json_valid" for c in self.constraints)
        return str(Path(self.config["quality"]["json_prompts"]).expanduser().absolute()) if wanted else None

    @property
    def wants_kl(self) -> bool:
        return "kl" in self.objectives or any(c.metric == "kl" for c in self.constraints)

    @property
    def scored(self) -> bool:
        """Whether an objective is a quality metric."""
        return any(name in QUALITY for name in self.objectives)

    @property
    def memory_bound_gb(self) -> float:
        """The lower of the machine's limit and the absolute constraints on `peak_memory_gb`."""
        return _memory_bound(self.limit_gb, self.constraints)

    @property
    def protocol(self) -> dict[str, Any]:
        """The part of the protocol that every measurement of the study shares."""
        return {k: self.config["protocol"][k] for k in ("warm_up_tokens", "timed_tokens", "page_cache", "state")}

    @property
    def prefill(self) -> str:
        """How prompts come into the model: `restored`, or `real` if the study says so or asks how fast a prefill is."""
        wanted = {*self.objectives, *(c.metric for c in self.constraints)}
        return REAL if wanted & {"prefill_tok_s", "ttft_ms"} else str(self.config["protocol"]["prefill"])

    @property
    def space_fingerprint(self) -> str:
        return hashlib.sha256(canonical(self.identity()["space"]).encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """What all rows of a study share. A change in any of these makes another study."""
        return {
            "model": self.model_fingerprint,
            "judge": self.judge.fingerprint,
            "engine": self.config["engine"]["command"] or self.config["engine"]["module"],
            "objectives": ",".join(self.objectives),
            "constraints": [c.text for c in self.constraints],
            "protocol": {k: v for k, v in self.protocol.items() if (k, v) not in SINCE},
            "seed": self.seed,
            "space": {"search_space": self.space.as_dict(), "knobs": dict(self.space.fixed)},
            "machine": {
                **{name: machine.identity()[name] for name in ("cpu", "cores")},
                **{name: value for name, value in self.computes_on.items() if value is not None},
            },
        }

    def check_model(self, known: State) -> State:
        """Return the state of the checkpoint's files now, given the last `known` one.

        Raises `CheckpointError` if the files hold another model.
        """
        try:
            now = folder_state(self.checkpoint)
        except OSError as e:
            raise CheckpointError(f"checkpoint {self.checkpoint} cannot be read any more ({e.strerror}); put it back") from e
        if now != known:
            found = str(engine_from_config(self.config["engine"]).footprint(self.checkpoint, Knobs()).fingerprint)
            if found != self.model_fingerprint:
                raise CheckpointError(
                    f"checkpoint {self.checkpoint} was replaced during the study: its fingerprint was "
                    f"{self.model_fingerprint} and is now {found}, {another(self.model_fingerprint, found)}; put the files "
                    "back, or start another study with study.name=OTHER"
                )
        return now

    def forbidden(self, values: Mapping[str, Any]) -> tuple[str | None, float]:
        """Why a setting cannot run (None if it can), by arithmetic, and its predicted peak in GB."""
        knobs = Knobs.from_mapping(values)
        need = self.engine.footprint(self.checkpoint, knobs)
        reason = None
        if knobs.cache_gb is not None and knobs.cache_gb < need.one_token_gb:
            reason = f"cache_gb={knobs.cache_gb:g} is below one token's experts ({need.one_token_gb:.4g} GB)"
        elif need.predicted_peak_gb * (1 - TOLERANCE) > self.memory_bound_gb:
            reason = f"needs {need.predicted_peak_gb:.3g} GB, above the limit of {self.memory_bound_gb:.3g} GB"
        return reason, need.predicted_peak_gb


def study_from_config(config: DictConfig) -> Study:
    """Check a composed configuration. Raises `ConfigError`, `CheckpointError` or `JudgeError`."""
    if OmegaConf.is_missing(config.model, "path"):
        raise ConfigError("model.path is not set; give model.path=DIR, or ORG/NAME of a downloaded model")
    c: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_numbers(c)
    if c["rehearse"]:
        c = rehearsed(c)
    objectives = objectives_from_config(c["objectives"])
    constraints = constraints_from_config(c["constraints"], c["quality"]["json_prompts"])
    judge_path = Path(c["quality"]["text"]).expanduser()
    judge, judge_name = _subset(Judge.load(judge_path), judge_path.stem, c["quality"]["most"])
    engine = engine_from_config(c["engine"], trust_code=c["model"]["trust_code"])
    checkpoint = _checkpoint(c)
    files = folder_state(checkpoint)
    engine = for_texts(engine, checkpoint, judge)
    resident = engine.footprint(checkpoint, Knobs())
    own = is_own(c["engine"])
    if own:
        open_tokenizer(checkpoint, trust_code=c["model"]["trust_code"])  # a wrong one ends the search here
    here = this_machine(mlx=own)
    device = limits_of(c["device"], here)
    limit = device.limit_gb
    needed = engine.footprint(checkpoint, Knobs(cache_gb=resident.one_token_gb)) if resident.one_token_gb else resident
    bounds = {
        "one_token": resident.one_token_gb,
        "all_experts": resident.all_experts_gb,
        "resident": max(0.0, needed.predicted_peak_gb - resident.one_token_gb),
        "memory_gb": device.need("memory_gb"),
        "limit_gb": limit,
        "cores": machine.identity()["cores"],
    }
    bound = _memory_bound(limit, constraints)
    profile = foreign_name(c["device"], here)
    found = None
    if c["search_space"].pop(KEY, False):
        named = f"device={profile}" if profile else "this machine"
        path = c["model"]["path"]
        found = automatic(checkpoint, engine, here, bound, c["knobs"], own=own, named=named, given=path)
        c["search_space"] = merged(found.derived.space, c["search_space"])
        if c["rehearse"]:
            c["search_space"] = lossless(c["search_space"])
    space = space_from_config(c["search_space"], c["knobs"], bounds)
    space = dataclasses.replace(space, footprint=functools.cache(functools.partial(engine.footprint, checkpoint)))
    anchors = [*space.anchors(), *(_anchor(space, i, values) for i, values in enumerate(c["study"]["anchors"]))]
    folder = Path(c["results_dir"]).expanduser().absolute() / c["study"]["name"]
    study = Study(
        c, space, anchors, engine, checkpoint, files, judge, judge_name, resident.architecture, resident.fingerprint,
        resident.predicted_peak_gb, limit, folder, objectives, constraints, bounds, profile, found,
    )  # fmt: skip
    settings = [space.values(params) for params in anchors]
    streamed = [Knobs.from_mapping(values) for values in settings if values.get("cache_gb") is not None]
    check_cache(space, [engine.footprint(checkpoint, knobs).one_token_gb for knobs in streamed], study.model)
    check_fixed_knobs(space, settings)
    check_reference(constraints, study.reference_gb, limit)
    check_together(c, space)
    return study


def _memory_bound(limit_gb: float, constraints: Sequence[Constraint]) -> float:
    bounds = [c.number for c in constraints if c.metric == "peak_memory_gb" and c.upper and not c.relative]
    return min([limit_gb, *bounds])


def _checkpoint(c: Mapping[str, Any]) -> Path:
    """The folder or file of `model.path`, or the downloaded model of that name or of `model.hub`. Raises
    `CheckpointError`."""
    given, own = c["model"]["path"], is_own(c["engine"])
    path = Path(given).expanduser().absolute()
    if path.exists():
        return find_checkpoint(path) if own else path  # other engines may take other kinds of files
    name = repository(given) or repository(c["model"]["hub"])
    if name and (found := in_places(name)) is not None:
        return find_checkpoint(found).absolute()
    if repository(given):
        return find_checkpoint(given)  # raises with the line on how to download it
    raise CheckpointError(missing_checkpoint(c, path))


def _subset(judge: Judge, name: str, most: int | None) -> tuple[Judge, str]:
    """At most `most` texts, evenly spaced over the file, and a name that states the selection."""
    count = len(judge.texts)
    if most is None or most >= count:
        return judge, name
    return Judge(tuple(judge.texts[i * count // most] for i in range(most))), f"{name} ({most} of {count} texts)"


def _anchor(space: Space, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return space.params(values)
    except ConfigError as e:
        raise ConfigError(f"study.anchors[{number}]: {e}") from e
