"""The hub's cache: the snapshot of a model, what it lacks, and the size of a download.

`huggingface_hub` finds the snapshot (HF_HOME, HF_HUB_CACHE), without network. Only the size of a missing model is a request
to the hub, of three seconds at most. HF_HUB_OFFLINE=1 prevents it. Nothing is downloaded here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from pathlib import Path

from engine.errors import CheckpointError
from engine.knobs import GB

PATIENCE_S = 3.0
MOST_SHARDS = 10_000
NUMBERED = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
REPOSITORY = re.compile(r"(?:https?:/+)?(?:(?:huggingface\.co|hf\.co)/)?([\w][\w.-]*/[\w][\w.-]*)(?:/tree/main)?/?")


def repository(text: str) -> str | None:
    """ORG/NAME in a text that may name a model of the hub, or is its address; None for any other text."""
    found = REPOSITORY.fullmatch(text)
    return found[1] if found and "--" not in found[1] and ".." not in found[1] else None


def cache_folder() -> Path:
    """The hub's cache on this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(name: str) -> Path | None:
    """The folder of the newest snapshot of ORG/NAME in the hub's cache; None without one."""
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(Exception):  # a name that is none, a cache that cannot be read
        found = try_to_load_from_cache(name, "config.json", cache_dir=cache_folder())
        if isinstance(found, str):
            return Path(found).parent
    return snapshot_in(cache_folder() / f"models--{name.replace('/', '--')}")


def snapshot_in(folder: Path) -> Path | None:
    """The snapshot in a model's folder of the hub's cache: the one of `main`, else the newest; None without one."""
    with contextlib.suppress(OSError, ValueError):
        main = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if main.is_dir() and main.parent.name == "snapshots":
            return main
    with contextlib.suppress(OSError):
        found = sorted((folder / "snapshots").iterdir(), key=lambda place: place.stat().st_mtime)
        return next((place for place in reversed(found) if place.is_dir()), None)
    return None


def refuse_partial(path: Path, name: str, more: str = "") -> None:
    """Raise `CheckpointError` if a downloaded model lacks config.json, all its weights, or shards of a numbered set.

    more: options of the command that resumes the download.
    """
    files = sorted(path.glob("*.safetensors"))
    have, lacking = _shards(path, [file.name for file in files])
    has_config = os.path.lexists(path / "config.json")  # a link to nothing has a line of its own
    if has_config and files and not lacking:
        return
    resume = f"finish the download with: hf download {name}{more}"
    if not has_config:
        raise CheckpointError(f"{name} is downloaded only in part: {path} has no config.json; {resume}")
    if any(path.glob("*.gguf")) or any(path.glob("*.bin")):
        return  # it has weights, but of another kind
    present = sum(file.stat().st_size for file in files if os.path.exists(file))
    whole = _indexed_bytes(path)
    left = f", {max(whole - present, 0) / GB:.3g} GB of {whole / GB:.3g} GB are missing" if whole else ""
    count = f"{len(lacking)} of {have + len(lacking)} shards are missing"
    shards = f"{count} ({lacking[0]} is the first)" if lacking else "there are no weights"
    raise CheckpointError(f"{name} is downloaded only in part: {shards}{left}; {resume}")


def download_line(name: str) -> str:
    """How to download ORG/NAME, with its size if the hub tells it; or that the hub has no such model."""
    found = _ask(name)
    if isinstance(found, str):
        return found
    size = f" ({found / GB:.3g} GB)" if found else ""
    return f"download it{size} with: hf download {name}"


def _shards(path: Path, names: list[str]) -> tuple[int, list[str]]:
    """The number of shards of numbered sets, and the names of those that are missing or are links to nothing."""
    ends = {found[2] for name in names if (found := NUMBERED.fullmatch(name)) and int(found[2]) < MOST_SHARDS}
    wanted = [f"model-{n:0{len(end)}d}-of-{end}.safetensors" for end in sorted(ends) for n in range(1, int(end) + 1)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if not names:
            index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))
            wanted = sorted(set(map(str, index["weight_map"].values())))
    lacking = [name for name in wanted if not os.path.exists(path / name)]
    return len(wanted) - len(lacking), lacking


def _indexed_bytes(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        total = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))["metadata"]["total_size"]
        return int(total)
    return 0


def _ask(name: str) -> int | str | None:
    """The bytes of a model on the hub, or a line if it has none of this name; None offline or without an answer in time."""
    from huggingface_hub import constants, model_info
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return None
    answer: list[int | str] = []

    def request() -> None:
        try:
            info = model_info(name, files_metadata=True, timeout=PATIENCE_S)
            answer.append(sum(file.size or 0 for file in info.siblings or []))
        except RepositoryNotFoundError:
            answer.append(f"the hub has no {name}, or it is private: check the name, or run hf auth login")
        except Exception:  # any failure of the network
            return

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return answer[0] if answer else None
