"""A store that is damaged, half packed, another one's or in the way: one line each, and nothing computed with it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make

from engine import Checkpoint, CheckpointError, HeadraceError, KnobError, Knobs, ReadError, footprint, load
from engine.__main__ import main
from engine.checkpoint.store.description import read_description
from engine.packing import files
from engine.packing.pack import pack_store
from engine.packing.verify import verify_store

Make = Callable[..., Path]
TOKENS = list(range(30))
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def packed(store: Make, tmp_path: Path) -> Path:
    """A store of its own, to be damaged."""
    return Path(shutil.copytree(store("qwen3_moe", 4), tmp_path / "packed"))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 600
    return message


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def flip(file: Path, at: int, bit: int = 0) -> None:
    with open(file, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ (1 << bit)]))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "store.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def layer_file(path: Path, number: int = 1) -> Path:
    return next(path.glob(f"experts-{number:05d}-*"))


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    status = main([str(arg) for arg in args])
    return status, *capsys.readouterr()


# --- damage ---


def test_verify_names_every_damaged_part(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Checkpoint.open(packed)
    layer, file = opened.layers[1], opened.records[1].file
    assert opened.store is not None
    sections = opened.store.layers[1].sections
    start = int(min(t.offset[0] for t in layer.at(dict.fromkeys(layer.projections, 2)).tensors))
    size = opened.store.layers[1].record_bytes
    expected = []
    for expert, number in ((0, 0), (3, 5), (3, len(sections) - 1), (11, 7)):
        section = sections[number]
        flip(file, start + expert * size + section.offset + section.nbytes // 2, expert % 8)
        expected.append((expert, f"{section.projection} {section.tensor} of {(2, 4)[section.level]} bits"))
    flip(file, start + 6 * size - 1)  # what fills the fifth expert's last page
    expected.append((5, "padding of the last page"))
    flip(file, start + 12 * size + 8 * 6 * 4)  # the fifth expert's errors
    expected.append((4, "table of errors"))
    shard = next(packed.glob("model*.safetensors"))
    flip(shard, shard.stat().st_size - 7)
    status, out, err = command(capsys, "pack", packed, "--verify")
    lines = [line for line in out.splitlines() if line.endswith("is damaged")]
    named = {f"{file.name}: {layer.block} expert {e}: {what} is damaged" for e, what in expected}
    assert status == 2 and set(lines) == {*named, f"{shard.name}: a resident tensor is damaged"}
    assert len(lines) == 7 and err.count("\n") == 1 and "damaged parts: 7; copy their files again" in err


@pytest.mark.parametrize("bits", [2, None])
@pytest.mark.parametrize("sync_window", [1, "all"])
def test_a_damaged_record_is_never_computed_with(packed: Path, bits: int | None, sync_window: int | str) -> None:
    opened = Checkpoint.open(packed)
    assert opened.store is not None
    lossy = {} if bits is None else {"expert_bits": bits}
    tensor = opened.layers[2].at(dict.fromkeys(opened.layers[2].projections, bits or 4)).tensor("up_proj.scales")
    assert tensor is not None
    for expert in range(opened.layers[2].experts):
        flip(opened.files[tensor.file[expert]], int(tensor.offset[expert]) + 3, 6)
    knobs = {"cache_gb": footprint(packed, Knobs(**lossy)).one_token_gb, "sync_window": sync_window, **lossy}
    with load(packed, Knobs.from_mapping({**knobs, "verify_reads": True})) as engine:
        for _ in range(2):
            with pytest.raises(ReadError, match=r"model\.layers\.2\.mlp expert \d+ is damaged: the checksum of its") as e:
                engine.logits(TOKENS)
            assert "copy the store's file again" in one_line(e)
        bank = engine.layers[2].cache.pools[0]
        assert {*np.flatnonzero(bank.table.slot_of >= 0).tolist()} <= bank._coming.keys()  # none passes for a hit later
    with pytest.raises(ReadError, match="up_proj scales"):
        load(packed, Knobs(verify_reads=True, **lossy))
    with load(packed, Knobs.from_mapping(knobs)) as engine:  # not asked for, it is not noticed
        engine.logits(TOKENS)
    assert len(verify_store(packed)) == opened.layers[2].experts


def test_verify_reads_needs_a_store(checkpoint: Make) -> None:
    for cache_gb in (None, 1.0):
        with pytest.raises(KnobError, match=r"verify_reads has no effect: qwen3_moe-4 is no packed store") as e:
            load(checkpoint("qwen3_moe", 4), Knobs(verify_reads=True, cache_gb=cache_gb))
        one_line(e)


@pytest.mark.parametrize("keep", [0, 5, 3000, -1, -4096])
def test_truncated_layer(packed: Path, keep: int, capsys: pytest.CaptureFixture[str]) -> None:
    file = layer_file(packed, 3)
    os.truncate(file, keep if keep >= 0 else file.stat().st_size + keep)
    for open_it in (Checkpoint.open, load, verify_store):
        with pytest.raises(CheckpointError, match=rf"{file.name}.*(truncated|damaged header).*copy it again") as e:
            open_it(packed)
        one_line(e)
    assert command(capsys, "pack", packed, "--verify")[0] == 2


def test_missing_layer(packed: Path) -> None:
    layer_file(packed, 2).unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 5 layers \(experts-00002.*same pack command again") as e:
        load(packed)
    one_line(e)


def test_layer_of_another_store(packed: Path, tmp_path: Path, store: Make) -> None:
    """Same shapes, other weights; and another layer of the same store."""
    make(tmp_path / "other", "qwen3_moe", bits=4, seed=1)
    pack_store(tmp_path / "other", tmp_path / "others")
    shutil.copy(layer_file(tmp_path / "others", 4), packed)
    with pytest.raises(CheckpointError, match=r"experts-00004-of-00005\.safetensors belongs to another store") as e:
        load(packed)
    one_line(e)
    shutil.copy(layer_file(store("qwen3_moe", 4), 3), layer_file(packed, 4))
    with pytest.raises(CheckpointError, match=r"is in another shard as well|belongs to another store"):
        load(packed)


@pytest.mark.parametrize("at", [3, 8, 100, 4090])
def test_damaged_header_of_a_layer(packed: Path, at: int) -> None:
    flip(layer_file(packed), at, 1)
    with pytest.raises(CheckpointError, match=r"experts-0000\d-of-00005") as e:
        load(packed)
    one_line(e)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '"x"', "null", "{}", '{"format": 2}', '{"format": "2", "digest": ""}', "[" * 100_000]
)
def test_damaged_description(packed: Path, content: str) -> None:
    (packed / "store.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"store\.json is damaged \(.*copy it again, or pack the model again") as e:
        load(packed)
    one_line(e)


@pytest.mark.parametrize("version", [1, 3, 99])
def test_another_version_of_the_format(packed: Path, version: int) -> None:
    edit(packed, lambda content: content.update(format=version))
    with pytest.raises(
        CheckpointError, match=rf"has format {version}, but this version reads format 2; pack the model again"
    ) as e:
        load(packed)
    one_line(e)


def test_changed_description(packed: Path) -> None:
    edit(packed, lambda content: content["layers"][0]["projections"][0].update(group_size=64))
    with pytest.raises(CheckpointError, match=r"store\.json is damaged \(its digest is not") as e:
        load(packed)
    one_line(e)


def test_store_under_another_configuration(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "num_experts": 10}))
    with pytest.raises(CheckpointError, match=r"has 12 experts, but config\.json has num_experts=10"):
        load(packed)


def test_missing_checksums_of_the_rest(packed: Path) -> None:
    (packed / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no checksums of the resident tensors") as e:
        verify_store(packed)
    one_line(e)


# --- levels, folders, space ---


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("2,5", "do not nest: each must be twice the one before; give one of 2,4 or 3,6 or 4,8 or 2,4,8"),
        ("4", "do not nest"), ("4,2", "do not nest"), ("2,2", "do not nest"), ("0,0", "are not widths"),
        ("1,2,4", "are not widths that MLX computes with"), ("8,16", "are not widths"), ("3,6,12", "are not widths"),
    ],
)  # fmt: skip
def test_levels_that_do_not_nest(
    checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], levels: str, message: str
) -> None:
    status, _, err = command(capsys, "pack", checkpoint("qwen3_moe", 4), tmp_path / "store", "--levels", levels)
    assert (status, err.count("\n")) == (2, 1) and f"--levels {levels} {message}" in err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("levels", ["2;4", "", "a,b", "2,,4"])
def test_levels_that_are_no_numbers(
    checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], levels: str
) -> None:
    with pytest.raises(SystemExit) as e:
        main(["pack", str(checkpoint("qwen3_moe", 4)), str(tmp_path / "store"), "--levels", levels])
    assert e.value.code == 2 and "--levels" in capsys.readouterr().err


def test_a_width_that_the_store_lacks(packed: Path) -> None:
    with pytest.raises(KnobError, match=r"expert_bits=3 is not a level of the store packed; use one of 2, 4") as e:
        load(packed, Knobs(expert_bits=3))
    one_line(e)


def test_folders_that_are_in_the_way(
    checkpoint: Make, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint("qwen3_moe", 4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for args, message in (
        ((source, source), "is the checkpoint itself; give another folder"),
        ((packed, tmp_path / "new"), "is a packed store already; pack the checkpoint that it was made from"),
        ((source, tmp_path / "full"), "is not empty and is not a store; give a new folder"),
        ((source, tmp_path / "file"), "cannot be written (Not a directory); give another folder"),
        ((source, tmp_path / "file" / "below"), "cannot be written (Not a directory); give another folder"),
        ((source, packed, "--levels", "2,4,8"), "holds a store of levels 2,4; give another folder, or remove this one"),
        ((checkpoint("glm4_moe", 6), packed), "holds a store of another model; give another folder, or remove this one"),
        ((tmp_path / "nowhere", tmp_path / "new"), "is not a folder"),
        ((tmp_path / "full", tmp_path / "new"), "has no config.json"),
        ((source, "--verify"), "is not a packed store and has no checksums; pack it first"),
        ((source,), "name the folder of the store to make"),
    ):
        before = contents(packed)
        status, _, err = command(capsys, "pack", *args)
        assert (status, err.count("\n")) == (2, 1) and message in err, err
        assert contents(packed) == before and not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(HeadraceError, match=r"store cannot be written \(Permission denied\); give another folder") as e:
        pack_store(checkpoint("qwen3_moe", 4), tmp_path / "store")
    one_line(e)


def test_free_space_is_checked_first(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HeadraceError, match=r"needs 0\.000\d+ GB more, and 0\.0001 GB are free; free some") as e:
        pack_store(checkpoint("qwen3_moe", 4), tmp_path / "store")
    one_line(e)
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["store.json"]


def test_another_process_packs_there(checkpoint: Make, packed: Path) -> None:
    layer_file(packed, 5).unlink()
    with open(packed / "store.json") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HeadraceError, match="is being packed by another process; wait for it") as e:
            pack_store(checkpoint("qwen3_moe", 4), packed)
        one_line(e)
    assert pack_store(checkpoint("qwen3_moe", 4), packed).kept == 4


@pytest.mark.parametrize("place", ["posix_fallocate", "pwrite", "fsync", "write"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_disk_that_fills(
    checkpoint: Make, store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, after: int
) -> None:
    calls = 0

    def full(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        return call

    source, path = checkpoint("qwen3_moe", 4), tmp_path / "store"
    with monkeypatch.context() as m:
        if place == "write":
            m.setattr(files, "write_whole", full(files.write_whole))
        else:
            m.setattr(os, place, full(getattr(os, place)))
        with pytest.raises(
            HeadraceError, match=r"is full, with \d of 5 layers to go; make room|cannot be written \(No space"
        ) as e:
            pack_store(source, path)
        one_line(e)
    assert not list(path.glob(".*.tmp")) or not after
    pack_store(source, path)
    assert contents(path) == contents(store("qwen3_moe", 4))


def test_a_source_that_cannot_be_read(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = checkpoint("qwen3_moe", 4)
    with monkeypatch.context() as m:
        m.setattr(os, "preadv", broken)
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors cannot be read at byte \d+ \(Input/output error\)"
        ) as e:
            pack_store(source, tmp_path / "store")
        one_line(e)
    pack_store(source, tmp_path / "store")


@pytest.mark.parametrize("bits", [None, 4])
def test_weights_that_are_no_numbers(tmp_path: Path, bits: int | None) -> None:
    source = make(tmp_path / "source", "qwen3_moe", bits=bits)
    tensor = Checkpoint.open(source).layers[3].tensor("up_proj.weight" if bits is None else "up_proj.scales")
    assert tensor is not None
    with open(source / "model.safetensors", "r+b") as f:
        f.seek(tensor.offset[7])
        f.write(b"\xc0\x7f")  # a NaN of bfloat16
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.3\.mlp\.up_proj: .*not finite; copy the checkpoint again"
    ) as e:
        pack_store(source, tmp_path / "store")
    one_line(e)


# --- killed ---

KILLED = """
import os, signal, sys
from pathlib import Path
from engine.packing.pack import pack_store
left, place = int(sys.argv[3]), sys.argv[4]
def killing(real):
    def call(*args):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return call
setattr(os, place, killing(getattr(os, place)))
pack_store(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize(("place", "after"), [
    ("replace", 0), ("replace", 1), ("replace", 3), ("pwrite", 30), ("replace", 6), ("fsync", 12), ("pwrite", 60),
])  # fmt: skip
def test_killed_it_goes_on_where_it_stopped(checkpoint: Make, store: Make, tmp_path: Path, place: str, after: int) -> None:
    """kill -9 at any point: layers that were finished stay the files they were, and the store ends the same."""
    source, path = checkpoint("qwen3_moe", 4), tmp_path / "store"
    process = subprocess.run([sys.executable, "-c", KILLED, source, path, str(after), place], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    finished = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.glob("experts-*")}
    if (path / "store.json").exists():
        with pytest.raises(CheckpointError):
            load(path)
    done = pack_store(source, path)
    assert done.kept == len(finished) < done.layers == 5
    assert finished.items() <= {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in path.glob("experts-*")}.items()
    assert contents(path) == contents(store("qwen3_moe", 4))


def test_workers_do_not_change_a_byte(checkpoint: Make, store: Make, tmp_path: Path) -> None:
    pack_store(checkpoint("mixtral", None), tmp_path / "one", workers=1)
    pack_store(checkpoint("mixtral", None), tmp_path / "five", workers=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "five")


MEMORY = """
import sys
from engine.system.memory import peak_memory_bytes
from engine.packing.pack import pack_store
pack_store(sys.argv[1], sys.argv[2], workers=2)  # a small one: imports and tables
before = peak_memory_bytes()
pack_store(sys.argv[3], sys.argv[4], workers=2)
print(peak_memory_bytes() - before)
"""


@pytest.mark.parametrize("bits", [4, 16])
def test_memory_stays_below_twice_a_layers_experts(checkpoint: Make, tmp_path: Path, bits: int) -> None:
    source, layer_bytes = large(tmp_path / "large", bits=bits)
    small = checkpoint("mixtral", None if bits == 16 else 4)
    args = [small, tmp_path / "small-store", source, tmp_path / "store"]
    done = subprocess.run([sys.executable, "-c", MEMORY, *args], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) < 2 * layer_bytes < sum(layer.expert_bytes * 8 for layer in Checkpoint.open(source).layers)


def large(path: Path, bits: int) -> tuple[Path, int]:
    """Three layers of eight experts of 1536 x 2048, all holes; and the bytes of one layer's experts."""
    path.mkdir()
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 3, "num_experts": 8, "num_experts_per_tok": 2,
              "hidden_size": 2048, "moe_intermediate_size": 1536, "vocab_size": 256}  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for layer in range(3):
        for name, (rows, columns) in {"gate_proj": (1536, 2048), "up_proj": (1536, 2048), "down_proj": (2048, 1536)}.items():
            tensors = {"weight": ("BF16", [8, rows, columns])} if bits == 16 else {
                "weight": ("U32", [8, rows, columns * bits // 32]), "scales": ("BF16", [8, rows, columns // 64]),
                "biases": ("BF16", [8, rows, columns // 64]),
            }  # fmt: skip
            for tensor, (dtype, shape) in tensors.items():
                nbytes = int(np.prod(shape)) * {"U32": 4, "BF16": 2}[dtype]
                span = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
                header[f"model.layers.{layer}.mlp.switch_mlp.{name}.{tensor}"] = span
                at += nbytes
    encoded = json.dumps(header).encode()
    with open(path / "model.safetensors", "wb") as f:
        f.write(len(encoded).to_bytes(8, "little") + encoded)
        f.truncate(8 + len(encoded) + at)
    return path, at // 3


# --- the command ---


def test_the_command_says_what_it_did(checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = checkpoint("kimi_k25", "int4"), tmp_path / "store"
    status, out, err = command(capsys, "pack", source, path, "--verify")
    assert status == 0
    assert f"{path}: 5 layers, 0.00" in out and "exact at 4 bits: 15 of 15 projections" in out
    assert "2 bits: relative RMSE 0.3" in out and "4 bits: relative RMSE 0.0000" in out
    assert "everything is as it was packed" in out
    assert "\x1b" not in err and "\r" not in err  # no terminal
    layer_file(path, 3).unlink()
    status, out, _ = command(capsys, "pack", source, path)
    assert status == 0 and "5 layers, 4 of them finished before" in out


def test_description_as_documented(store: Make) -> None:
    """Whoever reads a store needs no more than this."""
    path = store("kimi_k25", "int4")
    described = read_description(path)
    assert described is not None and described.levels == (2, 4)
    assert read_description(path.parent) is None
    kinds = {(p.symmetric, p.exact, p.group_size, p.dtype, p.bias) for layer in described.layers for p in layer.projections}
    assert kinds == {(True, True, 32, "BF16", None)}
    names = {t.name for t in described.source_tensors}
    assert "language_model.model.layers.1.mlp.experts.*.gate_proj.weight_packed" in names
    assert {t.experts for t in described.source_tensors} == {16}
