"""Known checkpoints: what a process learnt when it opened one, kept for itself and, in a file, for the processes it starts.

Opening a checkpoint of 1 T parameters parses the headers of 208,000 tensors, which takes 5 s of processor time, and its
fingerprint another 4.5 s and 210,000 reads. A search knows both. A run gets them in a file of 9 MB, which takes 12 ms. They
count only while no file of the checkpoint has changed: its device, inode, size and times are compared, which takes one call
of the system a file.

The file is for processes of one session. A file of another version of this code, a damaged one, or one of other files is
ignored: the checkpoint is then opened as usual. Only objects of this package, numpy and pathlib are read from it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.system import atomic

from .checkpoint import Checkpoint
from .fingerprint import State, folder_state, learn, state_of
from .places.find import find_checkpoint

CODE = Path(__file__).parent
ALLOWED = {  # what the fields of a checkpoint are made of, besides this package's own classes
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "pathlib": {"Path", "PosixPath"},
    "builtins": {"frozenset", "set"},
}
_opened: dict[tuple[Path, bool], tuple[State, Checkpoint]] = {}


def opened(path: str | Path, *, trust_code: bool = False) -> Checkpoint:
    """The checkpoint at `path`, as `Checkpoint.open` gives it; the same object as long as its files do not change. Raises
    `CheckpointError`."""
    path = find_checkpoint(path)
    before = _state(path)
    known = _opened.get((path, trust_code))
    if known is None or before is None or known[0] != before:
        checkpoint = Checkpoint.open(path, trust_code=trust_code)
        if before is None:
            return checkpoint
        known = _opened[path, trust_code] = before, checkpoint
    return known[1]


def keep(checkpoint: Checkpoint, file: Path) -> None:
    """Write what is known of a checkpoint to `file`, with its fingerprint. Writes nothing if one of its objects cannot be
    written. Raises `OSError`, and `CheckpointError` for a file of it that cannot be read."""
    state, value = _state(checkpoint.path), checkpoint.fingerprint
    kept = copy.copy(checkpoint)
    kept.__dict__.pop("built", None)  # it holds objects of mlx-lm, and is made in 0.1 s
    with contextlib.suppress(pickle.PicklingError, TypeError, AttributeError):
        content = pickle.dumps((_code(), state, value, kept), protocol=5)
        atomic.write_bytes(file, content, durable=False)


def take(file: Path) -> bool:
    """Learn what `keep` wrote to `file`; returns whether it holds. `opened` then reads nothing of that checkpoint."""
    try:
        code, state, value, checkpoint = _Known(io.BytesIO(file.read_bytes())).load()
        if code != _code() or state is None or state != _state(checkpoint.path):
            return False
        learn(value, checkpoint.path, checkpoint.header_digest, checkpoint.files)
    except Exception:  # damaged content raises almost anything
        return False
    _opened[checkpoint.path, checkpoint.trust_code] = state, checkpoint
    return True


def _state(path: Path) -> State | None:
    """The state of a checkpoint's files; None if it cannot be read, which opening it reports."""
    try:
        return folder_state(path)
    except OSError:
        return None


def _code() -> State:
    """The state of this package's own files, which decide what the fields mean."""
    return state_of(sorted(CODE.rglob("*.py")))


class _Known(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()) and not module.startswith(f"{__package__}."):
            raise CheckpointError(f"{module}.{name} is no part of a checkpoint")
        return super().find_class(module, name)
