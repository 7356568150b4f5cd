"""Setting of a study: the recommended setting or the trial that `--from STUDY` names.

A recommended setting is read from the study's `best/NAME.yaml` if that file is not older than the rows. Otherwise, and for
any trial, `python -m harness.best STUDY` computes it in a child process, because the engine does not depend on the harness.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.errors import HeadraceError
from engine.system.child import child_environment
from engine.system.shipped import ROOT

from .setting_file import Setting, parse_setting, read_setting

BEST = "best"  # folder of the setting files in a study's folder
PICK = "fastest_lossless"  # the recommended setting that is used by default
SIGNS = ("manifest.json", "state.json", "trials", "trials.parquet")  # files that only a study's folder has
TIMEOUT_S = 600.0
COPYING_NS = 2_000_000_000  # a copy of a folder changes the order of its files' times by less


def study_folder(name: str | Path) -> Path | None:
    """The folder of the study `name`, a folder or a name under results/; None if there is none."""
    places = [Path(name).expanduser(), Path("results") / name, ROOT / "results" / name]
    return next((place.absolute() for place in places if any((place / sign).exists() for sign in SIGNS)), None)


def setting_from(study: str | Path, pick: str | None = None, trial: int | None = None) -> Setting:
    """A study's recommended setting `pick`, or its trial of that number. Raises `HeadraceError` in one line."""
    folder = study_folder(study)
    name = pick or PICK
    if folder is not None and trial is None and Path(name).name == name:
        file = folder / BEST / f"{name}.yaml"
        if file.is_file() and file.stat().st_mtime_ns + COPYING_NS >= _rows_changed(folder):
            return read_setting(_short(file))
    choice = ["--pick", name] if trial is None else ["--trial", str(trial)]
    words = [sys.executable, "-m", "harness.best", str(study), *choice]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=child_environment(),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        remedy = f"run python -m harness.report {study}"
        raise HeadraceError(f"the setting of {study} was not computed in {TIMEOUT_S:g} s; {remedy}") from e
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise HeadraceError(lines[-1] if lines else f"python -m harness.best ended with status {done.returncode}")
    place = (folder or Path(study)) / BEST
    return parse_setting(done.stdout, f"the rows of {study}", place)


def _rows_changed(folder: Path) -> int:
    """Time of the last change of a study's rows, ns."""
    places = [folder / "trials.parquet", folder / "trials", *(folder / "trials").glob("*.parquet")]
    return max((place.stat().st_mtime_ns for place in places if place.exists()), default=0)


def _short(path: Path) -> Path:
    """The path relative to the current folder, if it is inside."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
