"""Shards: the files decide and the index is a hint, for every family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from sharded import read_index, split, write_index
from tiny import CONFIGS, write_in_order

from engine import Checkpoint, CheckpointError, Knobs, load
from engine.checkpoint.files.shards import INDEX, missing_numbers

Make = Callable[..., Path]
ALIEN = {
    "model.layers.0.mlp.alien.weight": "model-00001-of-00003.safetensors",
    "visual.a": "model-00009-of-00009.safetensors",
}


def refused(path: Path, *, to_pack: bool = False) -> str:
    with pytest.raises(CheckpointError) as e:
        Checkpoint.open(path, to_pack=to_pack)
    message = str(e.value)
    assert "\n" not in message and str(path) in message
    return message


def sidecar(path: Path, index: dict[str, str]) -> None:
    mx.save_safetensors(str(path / "mtp.safetensors"), {"mtp.fc.weight": mx.ones((4, 4))}, metadata={"format": "mlx"})
    write_index(path, {**index, "mtp.fc.weight": "mtp.safetensors", "gone.weight": "consolidated.safetensors"})


# What may stand in the index's place without any effect, since mlx-lm reads none.
INDEXES: dict[str, Callable[[Path, dict[str, str]], object]] = {
    "damaged": lambda path, index: (path / INDEX).write_text('{"weight_map": {'),
    "empty": lambda path, index: (path / INDEX).write_text(""),
    "a list": lambda path, index: write_index(path, list(index)),
    "numbers": lambda path, index: write_index(path, dict.fromkeys(index, 5)),
    "of another model": lambda path, index: write_index(path, ALIEN),
    "with dropped tensors": lambda path, index: write_index(path, {**index, **ALIEN}),
    "before resharding": lambda path, index: write_index(path, dict.fromkeys(index, "model-00001-of-00001.safetensors")),
    "half of it": lambda path, index: write_index(path, dict(list(index.items())[::2])),
    "a folder": lambda path, index: (path / INDEX).mkdir(),
    "none": lambda path, index: (path / INDEX).rmdir(),
    "with a sidecar": sidecar,
}


@pytest.fixture(params=[0, 100_000], ids=["many tensors", "few tensors"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the model for one of so many tensors that a matching index is trusted, or for a usual one."""
    monkeypatch.setattr("engine.checkpoint.files.shards.MANY", request.param)
    monkeypatch.setattr("engine.checkpoint.files.shards._complete", set())


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_files_decide(checkpoint: Make, tmp_path: Path, family: str) -> None:
    """Whatever the index says, a whole model opens, and each shard is missed."""
    path = tmp_path / "split"
    shards = split(checkpoint(family), path)
    index, whole = read_index(path), Checkpoint.open(path)
    assert whole.header_digest == Checkpoint.open(checkpoint(family)).header_digest
    for name, write in INDEXES.items():
        write(path, index)
        assert Checkpoint.open(path).header_digest == whole.header_digest, name
        if (path / INDEX).is_file():
            (path / INDEX).unlink()
    for shard in shards:
        (path / shard).rename(tmp_path / shard)
        for indexed in (index, {**index, "mtp.fc.weight": "mtp.safetensors"}, ALIEN, None):
            write_index(path, indexed)
            assert f"lacks 1 of 3 shards ({shard} is the first)" in refused(path)
        (tmp_path / shard).rename(path / shard)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("name", INDEXES)
def test_what_the_index_says_is_only_a_hint(checkpoint: Make, tmp_path: Path, name: str) -> None:
    path = tmp_path / "split"
    split(checkpoint("qwen3_moe"), path)
    index, whole = read_index(path), Checkpoint.open(path)
    (path / INDEX).unlink()
    if name == "none":
        (path / INDEX).mkdir()
    INDEXES[name](path, index)
    assert Checkpoint.open(path).header_digest == whole.header_digest


KINDS = [("qwen3_moe", 4), ("kimi_k25", "original"), ("granitemoe", "original"), ("kimi_k25", "int4"),
         ("deepseek_v3", "fp8"), ("gpt_oss", "original")]  # fmt: skip


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_every_tensor_that_the_model_needs_is_missed(checkpoint: Make, tmp_path: Path, family: str, kind: int | str) -> None:
    """One file without an index; what mlx-lm drops may be missing."""
    path = Path(shutil.copytree(checkpoint(family, kind), tmp_path / "copy"))
    file, packed_only = path / "model.safetensors", kind == "fp8" or family == "gpt_oss"
    weights = dict(mx.load(str(file)))
    names = sorted(weights)
    for name in names[:: max(1, len(names) // 7)]:
        write_in_order(file, {n: v for n, v in weights.items() if n != name})
        if any(part in name for part in ("vision_tower", "mm_projector", "layers.61.", "weight_shape")):
            continue
        message = refused(path, to_pack=packed_only)
        assert "which mlx-lm needs by its config.json" in message or (packed_only and "copy the missing shards" in message)


def test_an_index_of_these_files_names_the_shard(checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "split"
    split(checkpoint("qwen3_moe"), path)
    index = read_index(path)
    names = {shard: f"model.{'abc'[n]}.safetensors" for n, shard in enumerate(sorted({*index.values()}))}
    for old, new in names.items():
        (path / old).rename(path / new)
    write_index(path, {name: names[shard] for name, shard in index.items()})
    Checkpoint.open(path)
    (path / "model.b.safetensors").unlink()
    assert "lacks 1 of 3 shards (model.b.safetensors is the first)" in refused(path)
    write_index(path, ALIEN)
    assert "shards (" not in refused(path) and "copy its shards again, or the config.json" in refused(path)


def test_a_shard_that_only_dropped_tensors_have_may_be_missing(checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "split"
    split(checkpoint("qwen3_moe"), path)
    index = read_index(path)
    for shard in sorted({*index.values()}):
        new = shard.replace("of-00003", "of-00004")
        (path / shard).rename(path / new)
        index = {name: new if of == shard else of for name, of in index.items()}
    for more in ({"mtp.fc.weight": "model-00004-of-00004.safetensors"}, {"model.x": "model-00004-of-00004.safetensors"}):
        write_index(path, {**index, **more})
        with load(path, Knobs(cache_gb=0.0005)) as engine:
            assert engine.logits([1, 2]).shape == (2, 256)


def test_no_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    assert "has no model*.safetensors; copy the shards" in refused(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert "has no model*.safetensors, but consolidated.safetensors; copy" in refused(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert refused(tmp_path / "model.safetensors").endswith("has no config.json; give the folder of a whole model")
    for path in (tmp_path / "model.safetensors" / "x", tmp_path / ("x" * 300)):
        assert "; give the folder " in refused(path)


def test_copies_of_a_shard(checkpoint: Make, tmp_path: Path) -> None:
    """Equal tensors may be there twice, since it does not matter which one mlx-lm takes."""
    path = tmp_path / "split"
    shards = split(checkpoint("qwen3_moe"), path)
    whole = Checkpoint.open(path)
    shutil.copy(path / shards[0], path / "model copy.safetensors")
    shutil.copy(checkpoint("qwen3_moe") / "model.safetensors", path)
    assert Checkpoint.open(path).header_digest == whole.header_digest
    weights = dict(mx.load(str(path / shards[1])))
    name = min(weights)
    mx.save_safetensors(str(path / "model.safetensors"), {name: weights[name] + 1})
    assert f"{name} is in {shards[1]} as well, and the two differ; remove the file" in refused(path).replace(
        "model.safetensors is in", ""
    )


def test_numbers_that_are_missing() -> None:
    assert missing_numbers(
        ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "model.safetensors"]
    ) == ["model-00002-of-00003.safetensors"]
    assert missing_numbers(["model.safetensors", "model-a-of-b.safetensors"]) == []


def test_a_store_needs_its_resident_tensors(store: Make, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store("qwen3_moe", 4), tmp_path / "store"))
    (path / INDEX).unlink()
    Checkpoint.open(path)
    shard = next(path.glob("model*.safetensors"))
    weights = dict(mx.load(str(shard)))
    mx.save_safetensors(str(shard), {name: value for name, value in weights.items() if name != "model.norm.weight"})
    assert "lacks model.norm.weight, which mlx-lm needs by its config.json" in refused(path)


def test_a_configuration_with_more_layers_than_the_files(checkpoint: Make, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoint("qwen3_moe"), tmp_path / "copy"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    assert "tensors (model.layers.5.input_layernorm.weight is the first), which mlx-lm needs by its config.json" in refused(
        path
    )
