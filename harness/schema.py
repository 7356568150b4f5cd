"""What a study's configuration may hold: one dataclass a group, registered with Hydra so that typos and types are caught.

`knobs` and `search_space` are open here, for their keys are the engine's knobs: `harness.space.space` checks them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

import engine
from harness import ROOT, ConfigError
from harness.results.metrics import OBJECTIVES

FILES: dict[str, str] = {}  # the choice that stands for a file named with search_space=FILE


@dataclass
class StudyConfig:
    name: str = MISSING  # the folder under results_dir
    about: str = ""
    seed: int = 0
    anchors: list[dict[str, Any]] = field(default_factory=list)  # first trials besides those that the space yields


@dataclass
class BudgetConfig:
    trials: int = 24  # that run, over all starts of the command; reference, sentinels and confirmation come on top
    hours: float | None = None  # wall clock of this run of the command, all included; null: no limit
    trial_timeout_s: float = 120.0
    hang_s: float | None = None  # an engine that gave signs of life and then none for so long hangs; null: never


@dataclass
class SamplerConfig:
    name: str = "auto"  # auto: gp where it leads, else tpe; or the name of any of Optuna's samplers
    options: dict[str, Any] = field(default_factory=dict)  # its keyword arguments, if it is named
    random_every: int = 10  # every so many-th trial is drawn at random, to know what the sampler is worth; 0: none


@dataclass
class ProtocolConfig:
    warm_up_tokens: int = engine.Protocol.warm_up_tokens  # decoded before the clock starts
    timed_tokens: int | None = engine.Protocol.timed_tokens  # decoded against the clock; null: all of the judge's
    repeats: int = 1  # runs of each setting, each in a process of its own
    page_cache: str = engine.Protocol.page_cache  # before a run: cold (the checkpoint's files are dropped), warm or as_is
    cool_down_s: float = 0.0  # between runs
    stop_error: float = 0.01  # probability of stopping a run early that could have entered the front; 0: never stop


@dataclass
class SentinelConfig:
    every: int = 8  # runs between measurements of the default configuration; 0: none
    drift: float = 0.15  # a change of its speed beyond this share, and beyond its noise, makes the runs between suspect


@dataclass
class ConfirmConfig:
    share: float = (
        0.5  # runs for confirmation, at most, as a share of the trials that ran (of the hours: of the time); 0: none
    )
    runs: int = 2  # least fresh runs of a confirmed point
    within: float = 0.05  # of a truly better point's speed, a point of the front may fall short
    error: float = 0.03  # probability that it falls short by more, at most; over the front, in the mean


@dataclass
class RecommendConfig:
    max_loss: float = 0.01  # of the model's own perplexity, that a recommended setting may lose
    speed_share: float = 0.9  # of the speed of the fastest, that the one with the least memory has at least
    memory_gb: float | None = None  # a limit under which the fastest is wanted; null: not asked


@dataclass
class ProposerConfig:
    command: str | None = None  # gets the study so far as JSON on its input and answers with proposals as JSON
    every: int = 8  # settings between its calls
    timeout_s: float = 300.0


@dataclass
class GuardsConfig:
    min_disk_gb: float = 1.0  # free where results are written
    min_free_memory_share: float = 0.05  # of the machine's, before a trial
    allow_battery: bool = False
    max_load: float | None = None  # foreign load, in busy cores, above which a run is suspect; null: half of the cores
    wait_s: float = 600.0  # how long to wait for a cool, quiet machine before a run; then it is run and marked suspect
    alone: bool = True  # refuse to run while another search runs on this machine
    keep_awake: bool = True  # hold off the machine's sleep


@dataclass
class StorageConfig:
    url: str | None = None  # postgresql://...: machines of one kind share the study; null: study.db beside the rows
    stale_s: float = 120.0  # without a beat for so long, another machine's trial is taken over


@dataclass
class ModelConfig:
    name: str | None = None  # null: that of the checkpoint's folder
    path: str = MISSING  # the checkpoint's folder
    about: str = ""  # for a checkpoint that must be fetched: which one it is
    size_gb: float | None = None  # and how large


@dataclass
class DeviceConfig:
    name: str = MISSING  # of these limits; rows name what really computed
    memory_gb: float | None = None  # null: what this machine has
    usable_share: float = 0.9  # of memory_gb, the most that a trial may use
    note: str = ""


@dataclass
class QualityConfig:
    text: str = MISSING  # the judge: a YAML list of prompts, or any text file
    most: int | None = None  # at most this many of its texts, evenly chosen: a long judge makes long trials; null: all
    json_prompts: str | None = None  # prompts for json_valid; needed if it is constrained


@dataclass
class EngineConfig:
    module: str = "engine"  # MODULE, or MODULE:CLASS, with `load` and `footprint` as the engine has them
    command: str | None = None  # or a command that gets a request as JSON on its input and answers with figures as JSON


@dataclass
class Config:
    results_dir: str = MISSING
    rounds: int = 1  # rounds of exploring, reading the result, changing the space and confirming
    objectives: list[str] = field(default_factory=lambda: list(OBJECTIVES))
    constraints: list[str] = field(default_factory=list)  # METRIC <= NUMBER, METRIC >= NUMBER, or ... FACTOR * reference
    study: StudyConfig = field(default_factory=StudyConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    sentinel: SentinelConfig = field(default_factory=SentinelConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    recommend: RecommendConfig = field(default_factory=RecommendConfig)
    proposer: ProposerConfig = field(default_factory=ProposerConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    knobs: dict[str, Any] = field(default_factory=dict)
    search_space: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Make the schema, the files of `search_spaces/` and the resolver `${root:}` known to Hydra."""
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
    schema = OmegaConf.structured(Config)
    for open_group in (schema.knobs, schema.search_space, schema.sampler.options):
        OmegaConf.set_struct(open_group, False)  # so that `knobs.ssd_gbps=0.3` needs no `+`
    store = ConfigStore.instance()
    store.repo.pop("search_space", None)  # files that an earlier command of this process named
    store.store("schema", schema)
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        store_space(path, path.stem)


def store_space(path: str | Path, name: str = "") -> str:
    """Make a file a choice of the group search_space; returns the choice's name. Raises `ConfigError`."""
    if not name:
        name = re.sub(r"\W+", "_", str(path)).strip("_")
        FILES[name] = str(path)
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"search_space={path} cannot be read ({e.strerror}); give a file of knobs, or a name") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid YAML ({' '.join(str(e).split())}); mend it") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a search space; write a line KNOB: ENTRY for each knob")
    ConfigStore.instance().store(name, OmegaConf.create(content), group="search_space")
    return name
