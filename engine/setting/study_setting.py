"""Setting of a study: the recommended setting or the trial that `--from STUDY` names.

A recommended setting is read from the study's `best/NAME.yaml` if that file was made from the rows as they are now, which
their digest in `best/.rows` shows; times of files show nothing, as clocks are set and shares have clocks of their own.
Otherwise, and for any trial, `python -m harness.best STUDY` computes it in a child process, because the engine does not
depend on the harness.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from engine.errors import HeadraceError
from engine.system.shipped import ROOT
from engine.system.user_cache import child_environment

from .setting_file import Setting, parse_setting, read_setting

BEST = "best"  # folder of the setting files in a study's folder
PICK = "fastest_lossless"  # the recommended setting that is used by default
SIGNS = ("manifest.json", "state.json", "trials", "trials.parquet")  # files that only a study's folder has
TIMEOUT_S = 600.0
ROWS = ".rows"  # in BEST: the digest of the rows that its files were made from
TAIL = 64 << 10  # bytes at the end of a Parquet file with its schema, offsets and statistics


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
        if file.is_file() and _read(folder / BEST / ROWS) == rows_digest(folder):
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


def rows_digest(folder: Path) -> str:
    """A digest of a study's files of rows, 16 hexadecimal digits: names, sizes and the ends of their content. A copy of the
    folder has the same one."""
    digest = hashlib.sha256()
    for path in (folder / "trials.parquet", *sorted((folder / "trials").glob("part-*.parquet"))):
        try:
            with open(path, "rb") as f:
                size = f.seek(0, 2)
                f.seek(max(0, size - TAIL))
                digest.update(f"{path.name} {size} ".encode() + f.read())
        except OSError:  # compacted meanwhile, or never there
            continue
    return digest.hexdigest()[:16]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _short(path: Path) -> Path:
    """The path relative to the current folder, if it is inside."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
