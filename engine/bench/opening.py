"""bench open: time and memory of opening and planning a checkpoint, of its fingerprint and of mlx-lm's lazy opening.

No weight is read but the fingerprint's samples. The same checkpoint is then opened as a run of a search opens it, from what
the search knows (`engine.checkpoint.known`).

Each part runs in its own process, to measure its own peak of memory. The bound for opening and planning is 15 s and 1.5 GB
for a checkpoint of 1 T parameters in 200,000 tensors (Kimi K2.5's original).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.checkpoint.known import keep, opened, take
from engine.cli.arguments.options import add_model, model_of
from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.system.memory import peak_memory_bytes
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import child_environment

BOUND_S, BOUND_GB = 15.0, 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser, positional=True)


def run(args: argparse.Namespace) -> None:
    """Measure time and memory of opening and planning."""
    print(to_json(bench_open(model_of(args))))


def bench_open(path: Path) -> dict[str, Any]:
    """Seconds and peak memory (of the whole process, with interpreter and MLX) of opening and planning `path`, and of
    opening it with mlx-lm afterwards."""
    result = {"bench": "open", "bound_s": BOUND_S, "bound_gb": BOUND_GB, **in_its_own_process("headrace", path)}
    result["mlx_lm"] = in_its_own_process("mlx_lm", path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "known"
        result["fingerprint"] = in_its_own_process("fingerprint", path, file)
        result["known"] = in_its_own_process("known", path, file)
    print(f"{result['tensors']} tensors in {result['files']} files of {result['apparent_gb']:.1f} GB")
    print(f"  {'':<34}{'s':>8}{'peak GB':>10}")
    seconds = result["open_s"] + result["plan_s"]
    print(f"  {'open and plan':<34}{seconds:8.2f}{result['peak_gb']:10.3f}")
    print(f"  {'bound for 1 T parameters':<34}{BOUND_S:8.2f}{BOUND_GB:10.3f}")
    print(f"  {'open with mlx-lm, and compare':<34}{result['mlx_lm']['s']:8.2f}{result['mlx_lm']['peak_gb']:10.3f}")
    print(f"  {'fingerprint':<34}{result['fingerprint']['s']:8.2f}{result['fingerprint']['peak_gb']:10.3f}")
    print(f"  {'open, with fingerprint, as known':<34}{result['known']['s']:8.2f}{result['known']['peak_gb']:10.3f}")
    return result


def in_its_own_process(what: str, *paths: Path) -> dict[str, Any]:
    """The figures of one of `PARTS`, from a process of its own. Raises `HeadraceError` with the child's error."""
    command = [sys.executable, "-m", "engine.bench.opening", what, *map(str, paths)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=child_environment(), check=False)
    lines = done.stdout.splitlines() or [to_json({"error": f"opening {paths[0]} ended with status {done.returncode}"})]
    answer = from_json(lines[-1])
    if "error" in answer:
        raise HeadraceError(answer["error"])
    return dict(answer)


def open_and_plan(path: Path) -> dict[str, Any]:
    """Open a checkpoint, compute the sizes of its weights, and plan slots for half of its experts."""
    from engine.plan.banks import plan_banks
    from engine.plan.footprint import weights_of

    begin = time.perf_counter()
    source = opened(path)
    begin_plan = time.perf_counter()
    sizes = weights_of(source, Knobs())
    banks = plan_banks(source, Knobs(cache_gb=max(sizes.one_token_gb, sizes.all_experts_gb / 2)))
    return {
        "open_s": begin_plan - begin, "plan_s": time.perf_counter() - begin_plan, "peak_gb": peak_memory_bytes() / GB,
        "tensors": source.tensors, "files": len(source.files), "layers": len(source.layers),
        "apparent_gb": sum(file.stat().st_size for file in source.files) / GB,
        "one_token_read_gb": sum(layer.expert_bytes * source.top_k for layer in source.layers) / GB,
        "experts_gb": source.expert_bytes / GB, "one_token_slots_gb": sizes.one_token_gb,
        "resident_gb": sizes.resident_gb, "slots": sum(bank.slots for bank in banks),
    }  # fmt: skip


def open_with_mlx_lm(path: Path) -> dict[str, Any]:
    """Open the checkpoint with mlx-lm and compare every switch with the tensors found in the headers."""
    from engine.model.open import open_model
    from engine.model.switches import switches

    source = opened(path)
    begin = time.perf_counter()
    found = switches(open_model(source), source)
    for layer, (_, switch) in zip(source.layers, found, strict=True):
        if source.levels is None:  # mlx-lm does not open the experts of a store
            layer.check_against(switch)
    return {"s": time.perf_counter() - begin, "peak_gb": peak_memory_bytes() / GB, "switches": len(found)}


def take_fingerprint(path: Path, file: Path) -> dict[str, Any]:
    """Compute the fingerprint of a checkpoint, and keep in `file` what is then known of it."""
    source = opened(path)
    begin = time.perf_counter()
    _ = source.fingerprint
    seconds = time.perf_counter() - begin
    keep(source, file)
    return {"s": seconds, "peak_gb": peak_memory_bytes() / GB, "file_bytes": file.stat().st_size}


def open_as_known(path: Path, file: Path) -> dict[str, Any]:
    """Open a checkpoint and get its fingerprint from what `file` keeps. Raises `HeadraceError` if it does not hold."""
    begin = time.perf_counter()
    if not take(file):
        raise HeadraceError(f"{path} changed while it was opened; try again")
    _ = opened(path).fingerprint
    return {"s": time.perf_counter() - begin, "peak_gb": peak_memory_bytes() / GB}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "headrace": open_and_plan, "mlx_lm": open_with_mlx_lm, "fingerprint": take_fingerprint, "known": open_as_known,
}  # fmt: skip

if __name__ == "__main__":
    try:
        print(to_json(PARTS[sys.argv[1]](*map(Path, sys.argv[2:]))))
    except HeadraceError as e:
        print(to_json({"error": str(e)}))
