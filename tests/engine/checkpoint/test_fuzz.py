"""Fuzzing: a changed header never gives wrong logits. It is refused in one line, or the logits equal those of mlx-lm."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_model

from engine import HeadraceError, Knobs, footprint, load
from engine.packing.verify import verify_store

TOKENS = [7, 80, 200, 3, 80, 41]
DTYPES = ["F32", "F16", "BF16", "U32", "I32", "U8", "I8", "F64", "F8_E4M3", "BOOL", "U33", None]
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 16, 31, 32, 64, 1 << 40, 1 << 70, 2.0, "8", True, None])


@st.composite
def mutations(draw: Any) -> Callable[[dict[str, Any]], None]:
    """A random change of a header: entries, types, shapes, byte ranges or names."""
    kind = draw(
        st.sampled_from(["dtype", "dims", "number", "offsets", "shift", "grow", "exchange", "name", "delete", "alien"])
    )
    one, other, place = draw(st.integers(0, 999)), draw(st.integers(0, 999)), draw(st.integers(0, 2))
    dtype, number, step = (
        draw(st.sampled_from(DTYPES)),
        draw(NUMBERS),
        draw(st.sampled_from([-64, -2, -1, 1, 2, 64, 1 << 20])),
    )
    digit = draw(st.sampled_from(["0", "1", "3", "15", "99"]))

    def change(header: dict[str, Any]) -> None:
        names = sorted(set(header) - {"__metadata__"})
        name, second = names[one % len(names)], names[other % len(names)]
        entry = header[name]
        offsets, shape = entry["data_offsets"], entry["shape"]
        if kind == "dtype":
            entry["dtype"] = dtype
        elif kind == "dims":
            entry["shape"] = [shape[::-1], shape[:-1], [1, *shape], [shape[0] * 2, *shape[1:-1], shape[-1] // 2]][one % 4]
        elif kind == "number":
            shape[place % len(shape)] = number
        elif kind == "offsets":
            offsets[place % 2] = number
        elif kind == "shift":
            entry["data_offsets"] = [at + step for at in offsets]
        elif kind == "grow":
            offsets[place % 2] += step
        elif kind == "exchange":
            header[name], header[second] = header[second], entry
        elif kind == "name":
            parts = name.split(".")
            numbers = [i for i, part in enumerate(parts) if part.isdigit()] or [0]
            parts[numbers[place % len(numbers)]] = digit
            header[".".join(parts) if one % 2 else second] = header.pop(name)
        elif kind == "delete":
            del header[name]
        else:
            header[name] = [number, {"dtype": dtype}, {**entry, "shape": number}, {**entry, "data_offsets": [number]}][
                one % 4
            ]

    return change


def outcome(run: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Logits, or None if the checkpoint was refused in one line; anything else is a failure."""
    try:
        return run()
    except HeadraceError as e:
        message = str(e)
    assert message and "\n" not in message
    return None


def refused_or_right(path: Path, cache_gb: float) -> bool:
    """Whether the checkpoint ran; fails if its logits are not those of mlx-lm."""

    def run(knobs: Knobs) -> np.ndarray:
        with load(path, knobs) as engine:
            return engine.logits(TOKENS)

    reference = outcome(lambda: run(Knobs()))
    streamed = outcome(lambda: run(Knobs(cache_gb=cache_gb)))
    found = [logits for logits in (streamed, reference) if logits is not None]
    if found:
        model, _ = load_model(path)
        model.set_dtype(mx.float32)
        expected = np.array(model(mx.array(TOKENS)[None])[0].astype(mx.float32))
        assert all(np.array_equal(logits, expected, equal_nan=True) for logits in found)
    return streamed is not None


@pytest.fixture(scope="module", params=[("deepseek_v3", None, True), ("qwen3_moe", 3)], ids=str)
def base(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> tuple[Path, float]:
    path = checkpoint(*request.param)
    return path, footprint(path).one_token_gb * 1.5


def mutated(base: tuple[Path, float], content: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        shutil.copy(base[0] / "config.json", path)
        (path / "model.safetensors").write_bytes(content)
        return refused_or_right(path, base[1])


QUICK = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_unchanged_it_runs(base: tuple[Path, float]) -> None:
    assert mutated(base, (base[0] / "model.safetensors").read_bytes())


@QUICK
@given(change=st.lists(mutations(), min_size=1, max_size=2))
def test_changed_entries(base: tuple[Path, float], change: list[Callable[[dict[str, Any]], None]]) -> None:
    content = (base[0] / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for one in change:
        before = copy.deepcopy(header)
        try:
            one(header)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
            header = before  # the second change found nothing to change in what the first one left
    encoded = json.dumps(header).encode()
    mutated(base, len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


@QUICK
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=0, max_size=3),
    length=st.one_of(st.just(0), st.integers(-70, 70), st.sampled_from([1 << 20, 1 << 40, -(1 << 20)])),
    cut=st.sampled_from([0, 0, 0, 1, 100, -100]),
)
def test_changed_bytes(base: tuple[Path, float], edits: list[tuple[float, int]], length: int, cut: int) -> None:
    """Changes bytes of the header, its length, and the end of the file."""
    content = bytearray((base[0] / "model.safetensors").read_bytes())
    header = int.from_bytes(content[:8], "little")
    for where, byte in edits:
        content[8 + int(where * (header - 1))] = byte
    content[:8] = max(0, header + length).to_bytes(8, "little")
    mutated(base, bytes(content[: len(content) - cut] if cut >= 0 else content + bytes(-cut)))


@QUICK
@given(key=st.integers(0, 99), value=st.sampled_from([0, 1, 2, 3, 5, 8, 31, 64, -1, None, "16", [4]]))
def test_changed_configuration(base: tuple[Path, float], key: int, value: Any) -> None:
    config = json.loads((base[0] / "config.json").read_text())
    names = [name for name in sorted(config) if type(config[name]) is int]
    config[names[key % len(names)]] = value
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(base[0] / "model.safetensors", folder)
        (Path(folder) / "config.json").write_text(json.dumps(config))
        refused_or_right(Path(folder), base[1])


# --- stores ---

KEYS = st.sampled_from(["layers", "levels", "projections", "rows", "columns", "file", "source_tensors"])
PLACES = st.lists(st.one_of(st.integers(0, 9), KEYS), max_size=5)
OTHERS = [[], {}, "BF16", "F8_E4M3", "../x", "store.json", [2, 4], [4, 2], [[]], 1e400, "gate_proj", 1 << 40]
VALUES = st.one_of(NUMBERS, st.sampled_from(OTHERS))


@pytest.fixture(scope="module")
def packed(store: Callable[..., Path]) -> Path:
    return store("qwen3_moe", 4)


@QUICK
@given(place=PLACES, value=VALUES, drop=st.booleans(), signed=st.booleans())
def test_changed_descriptions(packed: Path, place: list[int | str], value: Any, drop: bool, signed: bool) -> None:
    """Changes or removes a value in store.json; `signed`: with a matching digest."""
    content = json.loads((packed / "store.json").read_text())
    before, at = json.dumps(content), content
    for step in [0, *place]:
        if not isinstance(at, dict | list) or not at:
            break
        parent, keys = at, sorted(at) if isinstance(at, dict) else list(range(len(at)))
        key = step if step in keys else keys[(step if isinstance(step, int) else len(step)) % len(keys)]
        at = parent[key]
    if drop:
        del parent[key]
    else:
        parent[key] = value
    if signed:
        content.pop("digest", None)
        encoded = json.dumps(content, sort_keys=True).encode()
        content["digest"] = hashlib.sha256(encoded).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as folder:
        copy_of = Path(folder)
        for file in packed.iterdir():
            (copy_of / file.name).symlink_to(file)
        (copy_of / "store.json").unlink()
        (copy_of / "store.json").write_text(json.dumps(content))
        unchanged = json.dumps(json.loads(json.dumps(content))) == before
        found = outcome(lambda: np.array(len(verify_store(copy_of))))
        assert (found is None) != unchanged


@QUICK
@given(which=st.integers(0, 99), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_a_store_flips_unnoticed(packed: Path, which: int, where: float, bit: int) -> None:
    files = sorted(file for file in packed.iterdir() if file.suffix == ".safetensors" or file.name == "store.json")
    chosen = files[which % len(files)]
    content = bytearray(chosen.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        for file in packed.iterdir():
            (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / chosen.name).unlink()
        (Path(folder) / chosen.name).write_bytes(content)
        found = outcome(lambda: np.array(len(verify_store(folder))))
        same = chosen.name == "store.json" and json.loads(chosen.read_text()) == _or_none(bytes(content))
        assert found is None or found == 1 or (same and found == 0)


def _or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
