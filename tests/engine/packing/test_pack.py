"""Packing: folders, space, interruptions and memory; every failure is one line."""

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

import numpy as np
import pytest
from mlx.utils import tree_flatten
from stores import command, contents, layer_file, one_line
from tiny import make

from engine import Checkpoint, CheckpointError, HeadraceError, load
from engine.__main__ import main
from engine.checkpoint.built.model import build
from engine.packing.pack import pack_store

Make = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[3]


# --- damage ---


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
        ((source,), "pack needs a checkpoint and the folder of the store"),
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
    """After kill -9 at any point, complete layers keep their files, and the resumed store is identical."""
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
    """Three layers of eight experts of 1536 x 2048, as sparse files, and the bytes of one layer's experts."""
    path.mkdir()
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 3, "num_experts": 8, "num_experts_per_tok": 2,
              "hidden_size": 2048, "moe_intermediate_size": 1536, "vocab_size": 256,
              "intermediate_size": 1536, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
              "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "rms_norm_eps": 1e-6,
              "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": False}  # fmt: skip
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
    layers_bytes, parameters = at, tree_flatten(build(config).parameters())
    for name, value in parameters:
        if ".switch_mlp." not in name:
            header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [at, at + 2 * value.size]}
            at += 2 * value.size
    encoded = json.dumps(header).encode()
    with open(path / "model.safetensors", "wb") as f:
        f.write(len(encoded).to_bytes(8, "little") + encoded)
        f.truncate(8 + len(encoded) + at)
    return path, layers_bytes // 3


# --- the command ---


def test_the_command_says_what_it_did(checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = checkpoint("kimi_k25", "int4"), tmp_path / "store"
    status, out, err = command(capsys, "pack", source, path, "--verify")
    assert status == 0
    assert f"{path}: 5 layers, 0.00" in out and "exact at 4 bits: 15 of 15 projections" in out
    assert "2 bits: relative RMSE 0.3" in out and "4 bits: relative RMSE 0.0000" in out
    assert "all records match their checksums" in out
    assert "\x1b" not in err and "\r" not in err  # no terminal
    layer_file(path, 3).unlink()
    status, out, _ = command(capsys, "pack", source, path)
    assert status == 0 and "5 layers, 4 of them finished before" in out
