"""Process: the memory of a run's process besides model and texts, measured once for each machine and set of versions.

Python, MLX, transformers, the threads' stacks and, on a GPU, the driver take about 0.1 GB on Linux. No arithmetic gives this
figure. A child process therefore runs a model of a few hundred kilobytes, and its peak is stored in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.errors import HeadraceError, first_line
from engine.knobs import GB
from engine.model.backend import backend
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import cached_file, compute_apart

PACKAGES = ("mlx", "mlx-lm", "numpy", "tokenizers", "transformers")
MEASURED_BYTES = 105_000_000  # Linux x86-64, Python 3.11, MLX 0.32.4: used only if the child process fails
TOKENIZER_RATIO = 20.5  # peak memory over the size of tokenizer.json: 20.9, 21.4 and 20.5 at 4, 32 and 150 thousand tokens


@functools.cache
def process_bytes() -> int:
    """Return the memory of a run's process without model and tokenizer, bytes; the first call of a machine takes seconds."""
    file = process_file()
    if not file.exists():
        try:
            compute_apart("the memory of a run's process", "engine.bench.process")
        except HeadraceError as e:
            return _assumed(str(e))
    try:
        return int(from_json(file.read_text(encoding="utf-8"))["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        return _assumed(f"{file} cannot be read ({first_line(e)})")


def _assumed(why: str) -> int:
    print(f"note: a run's process is assumed to take {MEASURED_BYTES / GB:.2g} GB besides its model: {why}", file=sys.stderr)
    return MEASURED_BYTES


def process_file() -> Path:
    """The file in the user's cache folder that holds the figure of this machine, these versions and this backend."""
    known = [platform.platform(), platform.python_version(), backend()]
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            known.append(f"{package} {version(package)}")
    digest = hashlib.sha256(to_json(known).encode()).hexdigest()[:16]
    return cached_file(f"process-{digest}.json")


def tokenizer_bytes(checkpoint: Path) -> int:
    """Return the memory of a checkpoint's tokenizer, estimated from the sizes of its files, bytes."""
    sizes = [path.stat().st_size for name in ("tokenizer.json", "tiktoken.model") if (path := checkpoint / name).exists()]
    return round(TOKENIZER_RATIO * max(sizes, default=0))
