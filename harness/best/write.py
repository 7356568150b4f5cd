"""Setting files of a study: `best/NAME.yaml` for each recommended setting, written when a session ends and by the report.

A file of a rule that no longer selects a trial is removed. A file that a user has made or edited, or a link in its place, is
left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from engine.setting.setting_file import is_as_written
from engine.setting.study_setting import BEST, ROWS, rows_digest
from harness.analysis.pareto import Rows, analysed
from harness.decisions.recommend import Choice, recommended, rules_of, wishes_of
from harness.results.files import unwritable, write_text
from harness.results.rows import read_table

from .settings import RECOMMENDED, settings_of


def write_best(folder: Path, rows: Rows, choices: Sequence[Choice] | None = None) -> list[str]:
    """Write a study's setting files; returns a line for each file that was left because a user has changed it.

    choices: those of `recommended`, if they are at hand. Raises `ResultsError` if a file cannot be written.
    """
    digest = rows_digest(folder)
    found = analysed(rows, **rules_of(folder))
    if choices is None:
        choices = recommended(found, **wishes_of(folder)) if len(found.df) else []
    settings = settings_of(folder, found, choices) if choices else {}
    place, left = folder / BEST, []
    for name in RECOMMENDED:
        path = place / f"{name}.yaml"
        if _is_of_user(path):
            left.append(f"{BEST}/{path.name} was made or edited by hand and is left as it is; delete it to have it written")
        elif name in settings:
            try:
                place.mkdir(exist_ok=True)
            except OSError as e:
                raise unwritable(place, e) from e
            write_text(path, settings[name].to_yaml())
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    if settings and {*read_table(folder)["row_id"].to_pylist()} <= {*found.df["row_id"]}:
        write_text(place / ROWS, digest)
    else:  # no file is current, or a search has added rows meanwhile
        with contextlib.suppress(OSError):
            (place / ROWS).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # files are left, or there is no folder
        place.rmdir()
    return left


def _is_of_user(path: Path) -> bool:
    """Whether a file is not one that this module has written, unchanged."""
    if path.is_symlink():
        return True
    try:
        return not is_as_written(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, UnicodeDecodeError):
        return True
