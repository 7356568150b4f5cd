"""Configuration schema: one dataclass per group, registered with Hydra so that unknown keys and wrong types are refused.

Each key has its meaning in the metadata of its field (`help`), which `harness.search --help` prints. `knobs` and
`search_space` are open here, because their keys are the engine's knobs; `harness.space` checks them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

import engine
from engine.system.shipped import EXPERIMENTS, ROOT, SEARCH_SPACES
from harness import ConfigError
from harness.paths import GROUPS, folder_name, own_spaces, results_folder
from harness.results.metrics import OBJECTIVES

PROFILES = EXPERIMENTS / "devices.yaml"
SOLD_GB = 2**30 / 1e9  # a GB of memory as sold, in 10^9 bytes
FILES: dict[str, str] = {}  # GROUP=NAME of a choice -> GROUP=FILE, as the command line has it


def key(default: Any, meaning: str) -> Any:
    """A key with its default, which is immutable, and its meaning."""
    return field(default=default, metadata={"help": meaning})


@dataclass
class StudyConfig:
    name: str = key(MISSING, "folder of the study under results_dir")
    about: str = key("", "description for the reader")
    seed: int = key(0, "seed of the samplers")
    anchors: list[dict[str, Any]] = field(
        default_factory=list, metadata={"help": "settings to try first, besides those that follow from the space"}
    )


@dataclass
class BudgetConfig:
    trials: int = key(24, "trials that run over all starts of the command, besides reference, control and confirmation runs")
    hours: float | None = key(None, "hours awake of this start of the command, everything included; null: no limit")
    trial_timeout_s: float = key(120.0, "time limit of one run, s")
    hang_s: float | None = key(None, "end a run whose engine reported progress and then none for this long, s; null: never")


@dataclass
class SamplerConfig:
    name: str = key("auto", "auto (gp where it is better, else tpe), or the name of an Optuna sampler")
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "keyword arguments of a named sampler"})
    random_every: int = key(10, "one trial in this many is drawn at random, as a baseline for the sampler; 0: none")


@dataclass
class ProtocolConfig:
    warm_up_tokens: int = key(engine.Protocol.warm_up_tokens, "tokens decoded before timing starts")
    timed_tokens: int | None = key(engine.Protocol.timed_tokens, "timed tokens; null: all of the evaluation texts")
    repeats: int = key(1, "runs of each setting, each in a process of its own")
    page_cache: str = key(engine.Protocol.page_cache, "page cache before a run: cold (checkpoint dropped), warm or as_is")
    state: str = key(
        engine.Protocol.state,
        "experts' cache when timing starts: prefilled (by the prompt), steady (long generation) or cold (empty)",
    )
    prefill: str = key("restored", "prompts of a run: restored (read, once kept) or real (computed each time)")
    kept_gb: float = key(8.0, "limit of the kept prompts of all models and studies, GB")
    cool_down_s: float = key(0.0, "pause between runs, s")
    stop_scoring_error: float = key(
        0.01, "probability that scoring of a lossy setting ends early although its perplexity would have mattered; 0: never"
    )
    stop_error: float = key(0.01, "probability that early stopping ends a run that could enter the front; 0: never stop")


@dataclass
class SentinelConfig:
    every: int = key(8, "runs between two control runs of the default setting; 0: none")
    drift: float = key(0.15, "relative change of the control run's speed, beyond noise, that makes the runs between suspect")


@dataclass
class ConfirmConfig:
    share: float = key(0.5, "most confirmation runs as a share of the trials (with budget.hours: of the time); 0: none")
    runs: int = key(2, "fewest fresh runs of a confirmed point")
    within: float = key(0.05, "tolerated shortfall in speed of a front point against a truly better one, as a share")
    error: float = key(0.03, "largest probability of a larger shortfall, averaged over the front")


@dataclass
class RecommendConfig:
    max_loss: float = key(0.01, "largest loss of perplexity of a recommended setting, as a share of the unchanged model's")
    speed_share: float = key(0.9, "speed of the recommended setting with the least memory, as a share of the fastest")
    memory_gb: float | None = key(None, "also recommend the fastest setting below this memory, GB; null: do not")


@dataclass
class ProposerConfig:
    command: str | None = key(None, "external proposer: reads the study as JSON on its input, writes proposals as JSON")
    every: int = key(8, "settings between two calls")
    timeout_s: float = key(300.0, "time limit of a call, s")


@dataclass
class GuardsConfig:
    min_disk_gb: float = key(1.0, "least free space on the disk of the results, GB")
    min_free_memory_share: float = key(0.05, "least available memory before a run, as a share of the machine's")
    allow_battery: bool = key(False, "also run on battery")
    max_load: float | None = key(None, "load of other processes above which a run is suspect, in cores; null: half of them")
    wait_s: float = key(600.0, "longest wait for a cool, quiet machine before a run, s; after it the run is marked suspect")
    alone: bool = key(True, "refuse to run while another search runs on this machine")
    keep_awake: bool = key(True, "prevent the machine's sleep")


@dataclass
class StorageConfig:
    url: str | None = key(None, "postgresql://... of a study shared by machines of one kind; null: study.db beside the rows")
    stale_s: float = key(120.0, "take over a trial of another machine that has been silent for this long, s")


@dataclass
class ModelConfig:
    name: str | None = key(None, "name in reports; null: the checkpoint's folder")
    path: str = key(MISSING, "folder of the checkpoint, or ORG/NAME of a model that was downloaded from the hub")
    shape: str | None = key(None, "name of its shape, for rehearse=true")
    trust_code: bool = key(False, "run the checkpoint's own Python code if its tokenizer needs it; read that code first")
    hub: str = key("", "ORG/NAME on the hub: used, if it is downloaded, when the folder does not exist")
    about: str = key("", "which checkpoint to download, if the folder does not exist")
    size_gb: float | None = key(None, "size of that download, GB")


@dataclass
class DeviceConfig:
    name: str = key(MISSING, "auto, or the name of a profile or of a set of limits; rows name the hardware itself")
    memory_gb: float | None = key(None, "memory limit, GB; null: the memory of this machine")
    usable_share: float = key(0.9, "share of memory_gb that a run may use")
    gpu_memory_gb: float | None = key(None, "memory that the GPU may use, GB; null: what this machine's GPU reports")
    chip: str | None = key(None, "profile: processor")
    backend: str | None = key(None, "profile: cpu, metal or cuda")
    cores: int | None = key(None, "profile: cores of the processor")
    gpu_cores: int | None = key(None, "profile: cores of the GPU")
    memory_bandwidth_gbps: float | None = key(None, "profile: bandwidth of the memory, GB/s")
    disk_gbps: float | None = key(None, "profile: bandwidth of the disk, GB/s")
    source: str = key("", "profile: where its figures come from")
    note: str = key("", "remark for the reader")


@dataclass
class QualityConfig:
    text: str = key(MISSING, "evaluation texts: a YAML list of prompts, or any text file")
    most: int | None = key(None, "use at most this many of the texts, evenly spaced, for shorter runs; null: all")
    json_prompts: str | None = key(None, "prompts for json_valid; required if it is constrained")


@dataclass
class EngineConfig:
    module: str = key("engine", "engine adapter: MODULE or MODULE:CLASS with `load` and, if known, `footprint`")
    command: str | None = key(None, "or a command: reads a request as JSON on its input, writes figures as JSON")


@dataclass
class Config:
    results_dir: str = key(MISSING, "folder of all studies")
    rehearse: bool = key(False, "search the lossless knobs on random weights in the model's shape (headrace rehearse)")
    rounds: int = key(1, "rounds; each explores, evaluates, changes the space and confirms")
    objectives: list[str] = field(default_factory=lambda: list(OBJECTIVES), metadata={"help": "metrics to optimize"})
    constraints: list[str] = field(
        default_factory=list, metadata={"help": "METRIC <= NUMBER, METRIC >= NUMBER, or ... FACTOR * reference"}
    )
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
    knobs: dict[str, Any] = field(default_factory=dict, metadata={"help": "knobs held at one value"})
    search_space: dict[str, Any] = field(default_factory=dict, metadata={"help": "knobs to search, with their ranges"})


@functools.cache
def profiles() -> Mapping[str, Mapping[str, Any]]:
    """The profiles of machines by name, such as m2max_96gb, each with keys of the group `device`."""
    content = yaml.safe_load(PROFILES.read_text(encoding="utf-8"))
    known = {f.name for f in fields(DeviceConfig)}
    found: dict[str, dict[str, Any]] = {}
    for chip, entry in content["chips"].items():
        for machine in entry["machines"]:
            for sold in machine["memory"]:
                name, memory = f"{chip}_{sold}gb", sold * SOLD_GB
                share = next(rule["share"] for rule in content["working_set"] if sold <= rule["most_gb"])
                found[name] = {
                    "name": name, "chip": entry["chip"], "backend": "metal", "source": entry["source"],
                    "note": f"{entry['chip']}, {sold} GB",
                    "memory_gb": round(memory, 2), "gpu_memory_gb": round(memory * machine.get("gpu_share", share), 2),
                    **{key: value for key, value in machine.items() if key in known},
                }  # fmt: skip
    return found


@functools.cache
def _shipped() -> Mapping[str, Any]:
    """The schema, the shipped search spaces and the profiles, as Hydra's store keeps them; it copies what it loads."""
    schema = OmegaConf.structured(Config)
    for open_group in (schema.knobs, schema.search_space, schema.sampler.options):
        OmegaConf.set_struct(open_group, False)  # so that `knobs.ssd_gbps=0.3` needs no `+`
    store = ConfigStore.instance()
    for group in ("search_space", "device"):
        store.repo.pop(group, None)
    store.store("schema", schema)
    for path in sorted(SEARCH_SPACES.glob("*.yaml")):
        store_file("search_space", path, path.stem)
    for name, figures in profiles().items():
        store.store(name, OmegaConf.create(dict(figures)), group="device", package="device")
    return {name: store.repo[name] for name in ("schema.yaml", "search_space", "device")}


def register(config_dir: str | Path | None = None) -> None:
    """Register the schema, all search spaces, the profiles of devices and the resolvers `${root:}`, `${results:}` and
    `${named:}` with Hydra. `config_dir` is the user's `--config-dir`."""
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("results", lambda: str(results_folder()), replace=True)
    OmegaConf.register_new_resolver("named", lambda path: folder_name(str(path)), replace=True)
    shipped, store = _shipped(), ConfigStore.instance()
    for group in GROUPS:
        store.repo.pop(group, None)  # choices of an earlier command in this process
    for path in own_spaces(config_dir):
        store_file("search_space", path, path.stem)
    own = store.repo.get("search_space", {})
    spaces = {**own, **shipped["search_space"]}  # a shipped name means the shipped space
    store.repo.update({**shipped, "search_space": spaces, "device": dict(shipped["device"])})


def store_file(group: str, path: str | Path, name: str = "") -> str:
    """Register a file as a choice of a group; returns the choice's name. Raises `ConfigError`.

    Keys of a study's file are those of the whole configuration, as with the header `# @package _global_`.
    """
    if not name:
        name = re.sub(r"\W+", "_", str(path)).strip("_")
        FILES[f"{group}={name}"] = f"{group}={path}"
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as e:
        remedy = "give a file of knobs" if group == "search_space" else "give a YAML file"
        raise ConfigError(f"{group}={path} cannot be read ({e.strerror}); {remedy}, or a name") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid YAML ({' '.join(str(e).split())}); fix it") from e
    if not isinstance(content, dict):
        what, line = ("search space", "KNOB: ENTRY") if group == "search_space" else (f"file for {group}", "KEY: VALUE")
        raise ConfigError(f"{path} is not a {what}; write lines {line}")
    package = "_global_" if group == "study" else None
    ConfigStore.instance().store(name, OmegaConf.create(content), group=group, package=package)
    return name
