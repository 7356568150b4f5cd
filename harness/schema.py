"""What a study's configuration may hold: one dataclass a group, registered with Hydra so that typos and types are caught.

`knobs` and `search_space` are open here, for their keys are the engine's knobs: `harness.space` checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from . import ROOT, ConfigError


@dataclass
class Study:
    name: str = MISSING  # the folder under results_dir
    about: str = ""
    seed: int = 0
    anchors: list[dict[str, Any]] = field(default_factory=list)  # first trials besides those that the space yields


@dataclass
class Budget:
    trials: int = 24  # rows wanted in this study, all runs of the command together
    hours: float | None = None  # wall clock of this run of the command; null: no limit
    trial_timeout_s: float = 120.0


@dataclass
class Model:
    name: str = MISSING
    path: str = MISSING  # the checkpoint's folder
    about: str = ""  # for a checkpoint that must be fetched: which one it is
    size_gb: float | None = None  # and how large


@dataclass
class Device:
    name: str = MISSING
    memory_gb: float | None = None  # null: what this machine has
    usable_share: float = 0.9  # of memory_gb, the most that a trial may use
    note: str = ""


@dataclass
class Quality:
    text: str = MISSING  # the judge: a YAML list of prompts, or any text file
    most: int | None = None  # at most this many of its texts, evenly chosen: a long judge makes long trials; null: all


@dataclass
class EngineSeam:
    module: str = "engine"  # any module with `load` and `footprint` as the engine has them


@dataclass
class Config:
    results_dir: str = MISSING
    study: Study = field(default_factory=Study)
    budget: Budget = field(default_factory=Budget)
    model: Model = field(default_factory=Model)
    device: Device = field(default_factory=Device)
    quality: Quality = field(default_factory=Quality)
    engine: EngineSeam = field(default_factory=EngineSeam)
    knobs: dict[str, Any] = field(default_factory=dict)
    search_space: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Make the schema, the files of `search_spaces/` and the resolver `${root:}` known to Hydra."""
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
    schema = OmegaConf.structured(Config)
    for open_group in (schema.knobs, schema.search_space):
        OmegaConf.set_struct(open_group, False)  # so that `knobs.ssd_gbps=0.3` needs no `+`
    store = ConfigStore.instance()
    store.store("schema", schema)
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        try:
            store.store(path.stem, OmegaConf.load(path), group="search_space")
        except yaml.YAMLError as e:
            raise ConfigError(f"{path} is not valid YAML ({' '.join(str(e).split())}); mend it") from e
