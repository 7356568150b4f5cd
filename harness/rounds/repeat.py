"""Commands for a shell that repeat a round or resume a study: the user's overrides, without paths of this machine.

A path inside the current folder is relative to it. A path inside the home folder starts with `~` or `$HOME`. Any other
absolute path, and a database's address, becomes a shell variable, which a line before the command requires to be set.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from engine.system.shipped import home as home_folder
from engine.system.strict_json import to_json
from harness.schema import FILES
from harness.study.hydra.overrides import accepted, parsed, quoted
from harness.study.study import Study

from .round import space_path

EXPANDED = ("model.path", "quality.text", "quality.json_prompts", "results_dir", "search_space")  # these keys expand ~
REPLACED = ("study.name", "rounds", "budget.trials", "search_space")
ABSOLUTE = re.compile(r"(?:^|[\s=:,'\"\[({])/(?=[^\s/])")


def round_command(study: Study, number: int, trials: int) -> str:
    """The command that repeats a round with `trials` trials, after one line for each variable to set."""
    variables: dict[str, str] = {}
    flags, named = _given()
    anchors = number > 1 and bool(study.config["study"]["anchors"])  # these belong to the first round's space
    kept = [token for name, token in named if not name.startswith(REPLACED) and not (anchors and name == "study.anchors")]
    name = f"{study.name}_round_{number:02d}"
    words = [_word(token, variables) for token in (*flags, *kept, *_corrections(study.folder / space_path(number), kept))]
    words += [_space(study, number, variables), f"study.name={name}", "rounds=1", f"budget.trials={trials}"]
    return _lines([*words, *(["'study.anchors=[]'"] if anchors else [])], variables)


def resume_command() -> str:
    """The command that resumes the study: the user's own."""
    variables: dict[str, str] = {}
    flags, named = _given()
    return _lines([_word(token, variables) for token in (*flags, *(token for _, token in named))], variables)


def _given() -> tuple[list[str], list[tuple[str, str]]]:
    """The flags of the user's command, and its overrides as (name, token)."""
    given, flags, choice = [], [], ""
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        choice = str(hydra.runtime.choices["study"])
        given = [FILES.get(token, token) for token in hydra.overrides.task]
        flags = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    named = [(token.lstrip("+~").partition("=")[0], token) for token in given]
    if choice and "study" not in dict(named):
        named.insert(0, ("study", f"study={choice}"))
    return flags, named


def _lines(words: list[str], variables: dict[str, str]) -> str:
    wanted = [f': "${{{variable}:?set it to the {key} of this study}}"' for variable, key in variables.items()]
    return "\n".join([*wanted, f"python -m harness.search {' '.join(words)}"])


def _corrections(path: Path, overrides: list[str]) -> list[str]:
    """Overrides that restore the round's space where a study file changes entries after the space's file is loaded."""
    if not HydraConfig.initialized():
        return []
    composed = GlobalHydra.instance().config_loader().load_configuration(
        HydraConfig.get().job.config_name, accepted([*overrides, f"search_space={path}"]), RunMode.RUN
    )  # fmt: skip
    wanted: dict[str, Any] = yaml.safe_load(path.read_text())
    found: dict[Any, Any] = dict(OmegaConf.to_container(composed.search_space))  # type: ignore[arg-type]
    more = [f"~search_space.{knob}" for knob in found if knob not in wanted]
    return more + [f"search_space.{k}={_value(v)}" for k, v in wanted.items() if k not in found or found[k] != v]


def _value(value: Any) -> str:
    """A YAML value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(map(_value, value)) + "]" if isinstance(value, list) else to_json(value)


def _space(study: Study, number: int, variables: dict[str, str]) -> str:
    path = study.folder / space_path(number)
    if ABSOLUTE.search(_short(str(path), "~")):
        variables["RESULTS_DIR"] = "results_dir"
        return f'"search_space=$RESULTS_DIR/{path.relative_to(study.folder.parent)}"'
    return _word(f"search_space={path}", variables)


def _word(token: str, variables: dict[str, str]) -> str:
    """An override or `--config-dir=`, quoted for the shell."""
    key, _, value = token.partition("=")
    name, override = key.lstrip("+~-"), None if key.startswith("-") else parsed(token)
    text = override.value() if override is not None else value
    plain = isinstance(text, str)
    short = _short(str(text) if plain else value, "~" if name in EXPANDED else "$HOME")
    if name == "storage.url" or ABSOLUTE.search(short):
        variable = re.sub(r"\W", "_", name).upper()
        variables[variable] = name
        return f'"{key}=${variable}"'
    if short in (text, value):
        return shlex.quote(token)
    if plain and "," in short and name != "search_space":
        short = quoted(short)
    return '"$HOME"'.join(map(shlex.quote, f"{key}={short}".split("$HOME")))


def _short(text: str, home: str) -> str:
    """The text with `.` for the current folder and `home` for the home folder in its paths."""
    for folder, sign in ((Path.cwd(), "."), (home_folder(), home)):
        if folder is not None and folder != folder.parent:
            text = re.sub(rf"(?<![\w.~/-]){re.escape(str(folder))}(?=/|$)", lambda _, sign=sign: sign, text)  # type: ignore[misc]
    return text
