"""Models table: what streams of every model file of mlx-lm, tried on tiny models; writes docs/models.md.

    PYTHONPATH=. python -m tests.models_table

The tests try every file again and compare what they see with its row of the page.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does

import environment  # noqa: F401 (before numpy)
import mlx.core as mx
import numpy as np
from families import WITHOUT_SWITCH, configuration, file_of, model_files, model_types
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from originals import LAYOUTS, ONLY_TO_PACK, blocks, each
from tiny import CONFIGS, ORIGINALS, make, write_in_order

from engine import CheckpointError, Engine, KnobError, Knobs, footprint, load

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
PROMPT, DECODED = 34, 4  # with two experts a token, a prompt of 34 is long enough for mlx-lm to sort its rows
TOKENS = np.random.default_rng(7).integers(0, 255, PROMPT + DECODED).tolist()
# Loaded with a cache of one token's experts, and with more of them.
TRIED: dict[str, tuple[float, dict[str, Any]]] = {
    "1": (0.0, {}), "all": (0.3, {"sync_window": 0}), "prefetch": (0.3, {"prefetch": "stale_gate"})
}  # fmt: skip


@dataclass
class Tried:
    """What was seen of one model file. `differences`: setting -> largest absolute difference of the logits from those of
    the resident model; `refused`: setting, or "load", -> the error's line; `misses`: setting -> experts read; `original`:
    how an original is read."""

    file: str
    differences: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    original: str = "not tested"

    @cached_property
    def row(self) -> str:
        """The file's row in the table."""
        types = ", ".join(f"`{name}`" for name in model_types(self.file))
        if "load" in self.refused:
            seen = [f"not run: {reason(self.refused['load'])}", "", ""]
        else:
            exact = "exact" if not any(self.differences.values()) else "differs"
            seen = [exact, *(reason(self.refused[s]) if s in self.refused else "yes" for s in ("all", "prefetch"))]
        return f"| {' | '.join([types, *seen, self.original])} |"


def both_phases(engine: Engine) -> np.ndarray:
    """Logits of a prefill and of the tokens decoded after it, the second time after a prefill without logits."""
    parts = []
    for whole in (True, False):
        cache = make_prompt_cache(engine.model)
        if whole:
            parts += engine.forward.prefill(TOKENS[:PROMPT], cache)
        else:
            engine.forward.prefill_cache(TOKENS[:PROMPT], cache)
        parts += [engine.forward.logits([token], cache) for token in TOKENS[PROMPT : PROMPT + DECODED // (1 + whole)]]
    return np.concatenate([np.array(part) for part in parts])


def try_file(file: str, folder: Path, bits: int | None = None) -> Tried:
    """Make the tiny model of a file in `folder`, and compare it streamed with itself resident."""
    path = make(folder / file, file, config=configuration(file), bits=bits)
    tried = Tried(file)
    try:
        need = footprint(path)
        with load(path) as resident:
            expected = both_phases(resident)
    except CheckpointError as e:
        tried.refused["load"] = str(e)
        return tried
    assert np.isfinite(expected).all() and expected.std() > 1e-3, file
    for setting in TRIED if bits is None else ("1",):
        share, knobs = TRIED[setting]
        cache_gb = need.one_token_gb + share * (need.all_experts_gb - need.one_token_gb)
        try:
            with load(path, Knobs.from_mapping({"cache_gb": cache_gb, **knobs})) as engine:
                tried.differences[setting] = float(np.max(np.abs(both_phases(engine) - expected)))
                tried.misses[setting] = engine.stats.misses
        except KnobError as e:
            tried.refused[setting] = str(e)
    if bits is None:
        tried.original = originals(file) or try_original(file, path)
    return tried


def reason(line: str) -> str:
    """The part of an error's line that tells why, without the checkpoint's folder."""
    if "Metal" in line:
        return "needs Metal kernels of its own"
    if "not in a plain chain" in line:
        return "refused: layers are not a plain chain"
    if line.startswith("prefetch="):
        return "refused: no router to run ahead of time"
    return line.partition(": ")[2].partition(";")[0]


def try_original(file: str, made: Path) -> str:
    """Try the checkpoint `made` with one tensor for each expert, as most originals are, where mlx-lm opens it so."""
    short = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    for number, (spelling, block) in enumerate((({}, ".mlp."), (short, ".mlp."), (short, ".block_sparse_moe."))):
        path = Path(shutil.copytree(made, made.with_name(f"{file}-{number}")))
        weights = dict(mx.load(str(path / "model.safetensors")))
        sparse = tuple(f"{name}." for name, _ in blocks(weights))
        weights = each("experts", **spelling)(weights)
        weights = {n.replace(".mlp.", block) if n.startswith(sparse) else n: value for n, value in weights.items()}
        write_in_order(path / "model.safetensors", weights)
        try:
            load_model(path, lazy=True)
        except ValueError:  # mlx-lm misses the stacked tensors
            continue
        with load(path) as resident, load(path, Knobs(cache_gb=footprint(path).one_token_gb)) as engine:
            assert np.array_equal(engine.logits(TOKENS[-DECODED:]), resident.logits(TOKENS[-DECODED:])), path
        return "in place"
    return "not tested"


def originals(file: str) -> str:
    """How the file's original checkpoints are read, as far as other tests make one; empty if none does."""
    if file in {file_of(CONFIGS[family]) for family in ORIGINALS}:
        return "in place"
    if file == "gpt_oss":
        return "packed"
    layouts = [name for name, (family, _, _) in LAYOUTS.items() if family == file]
    if not layouts:
        return ""
    return "packed" if layouts[0] in ONLY_TO_PACK else "in place"


def table(rows: list[str]) -> str:
    """The generated part of the page."""
    head = [
        f"mlx-lm {version('mlx-lm')} has {len(rows)} model files with routed experts in a switch.", "",
        "| model types | streamed against resident | `sync_window` above 1 | `prefetch` | originals |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    without = [f"| `{file}` | not streamed: {why} | | | |" for file, why in WITHOUT_SWITCH.items()]
    return "\n".join([BEGIN, *head, *rows, *without, END])


@contextmanager
def on_cpu() -> Iterator[None]:
    """The page is about the CPU backend, on any machine."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder, on_cpu():
        for file in model_files():
            tried = try_file(file, Path(folder))
            rows.append(tried.row)
            print(tried.row, flush=True)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + table(rows) + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
