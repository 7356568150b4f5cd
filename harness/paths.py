"""Folders of a command: results, a study named on a command line, and a user's own configuration files.

Shipped files have their place in `engine.system.shipped`. A user's own files are looked for in the current folder and in the
folder of `--config-dir`, each with the same sub-folders as `experiments/` and beside it `search_spaces/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from engine.errors import did_you_mean
from engine.setting.study_setting import study_folder
from engine.system.shipped import EXPERIMENTS, IN_CHECKOUT, PROMPTS, ROOT
from harness import ResultsError

GROUPS = ("study", "model", "device", "quality", "search_space")  # each a folder of YAML files


def results_folder() -> Path:
    """The folder of all studies: that of the checkout for a command that runs inside it, else `results` in the current
    folder."""
    here = Path.cwd()
    return (ROOT if IN_CHECKOUT and here.is_relative_to(ROOT) else here) / "results"


def folder_name(model: str) -> str:
    """The name of a model, its folder or ORG/NAME, as the name of a folder of results."""
    from engine.checkpoint.config import model_name

    name = model_name(model).rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "model"


def own_folders(config_dir: str | Path | None = None) -> list[Path]:
    """The folders with a user's own configuration, the most specific first: `config_dir`, the current folder and its
    `experiments`. Those that are missing and the shipped one are left out."""
    here = Path.cwd()
    places = [*([Path(config_dir).expanduser().absolute()] if config_dir else []), here, here / "experiments"]
    return [place for place in places if place.is_dir() and place != EXPERIMENTS]


def own_spaces(config_dir: str | Path | None = None) -> Iterator[Path]:
    """The files of a user's own `search_spaces` folders. Hydra finds those in a folder `search_space` by itself."""
    for place in own_folders(config_dir):
        yield from sorted((place / "search_spaces").glob("*.yaml"))


def own_file(name: str | Path, config_dir: str | Path | None = None) -> Path:
    """A file of prompts or texts: as given, else the first of this name in the user's own folders or their `prompts`, else
    the shipped one. A name that none of them has is returned as it is."""
    path = Path(name).expanduser()
    if path.is_absolute() or path.exists():
        return path
    places = [folder for own in own_folders(config_dir) for folder in (own, own / "prompts")]
    return next((place / path for place in (*places, PROMPTS) if (place / path).is_file()), path)


def find_study(name: str) -> Path:
    """The folder of the study `name`, a folder or a name under results/. Raises `ResultsError` if there is none."""
    if (folder := study_folder(name)) is not None:
        return folder
    known = sorted({p.parent.name for place in (Path("results"), ROOT / "results") for p in place.glob("*/manifest.json")})
    hint = did_you_mean(name, known) if known else "start one: python -m harness.search"
    raise ResultsError(f"{name} is neither a study's folder nor the name of a study under results/; {hint}")
