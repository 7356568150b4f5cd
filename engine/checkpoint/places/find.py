"""Find: the folder of the checkpoint that a user names, by path or as ORG/NAME.

A path that exists comes first. ORG/NAME is then looked up in the hub's cache and in LM Studio's folder. Nothing is
downloaded: a model that is not there ends in one line with the command that downloads it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.errors import CheckpointError

from .hub import cache_folder, download_line, refuse_partial, repository, snapshot, snapshot_in
from .kind import other_file, other_folder
from .lm_studio import in_lm_studio, model_folders, name_in_lm_studio

HUB = re.compile(r"models--([^/]+)/snapshots/[^/]+$")


def find_checkpoint(given: str | Path) -> Path:
    """The folder that `given` names. Raises `CheckpointError` if it is not there or not whole, or is no checkpoint."""
    path = Path(given)
    try:
        path = path.expanduser()
        exists = path.exists()
    except PermissionError:
        return path  # the error of the first read names the folder without permission
    except (OSError, RuntimeError, ValueError) as e:  # no home, a name that is too long, a null byte
        raise CheckpointError(f"checkpoint {given!s:.200} cannot be used ({e}); give the folder of a model") from e
    if exists:
        return _whole(_inside(path))
    name = repository(str(given))
    if name is None:
        raise CheckpointError(f"checkpoint {path} is not a folder; give the folder that holds config.json")
    if (found := in_places(name)) is not None:
        return _whole(found)
    places = [f"the hub's cache ({cache_folder()})", *(f"LM Studio's folder ({place})" for place in model_folders()[:1])]
    raise CheckpointError(
        f"checkpoint {name} is neither a folder here nor in {' nor in '.join(places)}; {download_line(name)}"
    )


def in_places(name: str) -> Path | None:
    """The folder of ORG/NAME in the hub's cache or in LM Studio's folder; None if it is in neither."""
    return snapshot(name) or in_lm_studio(name)


def hub_name(path: str | Path) -> str | None:
    """ORG/NAME of a snapshot in the hub's cache or of a model in LM Studio's folder; None for any other folder."""
    try:
        place = Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError:
        return None
    if found := HUB.search(place.as_posix()):
        return found[1].replace("--", "/", 1)
    return name_in_lm_studio(place)


def _inside(path: Path) -> Path:
    """The snapshot in a model's folder of the hub's cache; any other path unchanged."""
    inside = snapshot_in(path) if path.name.startswith("models--") else None
    return inside or path


def _whole(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(other_file(path))
    if line := other_folder(path):
        raise CheckpointError(line)
    if name := hub_name(path):
        in_cache = HUB.search(Path(os.path.abspath(path)).as_posix())
        refuse_partial(path, name, "" if in_cache else f" --local-dir {path}")
    return path
