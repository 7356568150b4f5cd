"""Records: a damaged or foreign layer file is one line, and nothing is computed with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import command, flip, layer_file, one_line
from tiny import make

from engine import Checkpoint, CheckpointError, KnobError, Knobs, ReadError, footprint, load
from engine.packing.pack import pack_store
from engine.packing.verify import verify_store

Make = Callable[..., Path]
TOKENS = list(range(30))


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
        assert engine.state is not None
        pool = engine.layers[2].cache.pools[0]
        while not pool.settled:
            pool.take_in()
        assert (engine.state.slot_of[2] < 0).all()  # none passes for a hit later
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
        with pytest.raises(CheckpointError, match=rf"{file.name}.*(truncated|damaged header|is empty).*copy it again") as e:
            open_it(packed)
        one_line(e)
    assert command(capsys, "pack", packed, "--verify")[0] == 2


def test_layer_of_another_store(packed: Path, tmp_path: Path, store: Make) -> None:
    """A layer file with the same shapes and other weights, and another layer of the same store."""
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
