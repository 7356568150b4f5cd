"""Tests of stores of random weights: shared records are the other layer's, nothing is overwritten, and clean removes it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rehearsals import RECALL, ROUTING, plan, shape, write
from stores import by_mlx_lm, contents, flip, logits, one_line, streamed

from engine import HeadraceError, Knobs, footprint
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.description import read_description
from engine.packing import random_store
from engine.packing.random_store import clean, plan_store, write_store
from engine.packing.verify import verify_store
from engine.tokenizer.open import open_tokenizer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rehearsal") / "shared")


def apart(shared: Path, folder: Path) -> Path:
    """The same store with records of its own in each layer."""
    description = read_description(shared)
    assert description is not None
    layers = tuple(
        replace(layer, file=f"experts-{n:05d}-of-00005.safetensors", records_of=None)
        for n, layer in enumerate(description.layers, start=1)
    )
    own = replace(description, layers=layers)
    shutil.copytree(shared, folder, ignore=shutil.ignore_patterns("experts-*", "store.json"))
    (folder / "store.json").write_text(own.as_json())
    for layer, old in zip(layers, description.layers, strict=True):
        header = layer.header(own.digest)
        data = (shared / old.file).read_bytes()[len(old.header(description.digest)) :]
        (folder / layer.file).write_bytes(header + data)
    return folder


def test_a_shared_record_is_the_other_layers(shared: Path, tmp_path: Path) -> None:
    """Logits equal those of a store that has the records twice, to the last bit, streamed and resident."""
    description = read_description(shared)
    assert description is not None and len(description.own) == 2 and description.content["format"] == 3
    assert [layer.records_of for layer in description.layers[:2]] == [None, None]
    assert {layer.records_of for layer in description.layers[2:]} == {layer.block for layer in description.own}
    other = apart(shared, tmp_path / "apart")
    assert json.loads((other / "store.json").read_text())["format"] == 2
    for knobs in ({}, {"expert_bits": 2}):
        assert np.array_equal(streamed(shared, **knobs), streamed(other, **knobs))
    found = logits(shared, verify_reads=True)
    assert np.array_equal(found, logits(other)) and 0.1 < found.std() < 10
    assert Checkpoint.open(shared).fingerprint != Checkpoint.open(other).fingerprint


def test_sizes_count_the_memory_of_all_layers_and_the_disk_of_the_distinct_ones(shared: Path, tmp_path: Path) -> None:
    source, other = Checkpoint.open(shared), Checkpoint.open(apart(shared, tmp_path / "apart"))
    assert (source.shared_layers, other.shared_layers) == (3, 0)
    assert source.expert_bytes == other.expert_bytes and source.rest_bytes == other.rest_bytes
    found, expected = footprint(shared), footprint(other.path)
    assert (found.shared_layers, expected.shared_layers) == (3, 0)
    assert found.predicted_peak_gb == expected.predicted_peak_gb
    planned = plan()
    assert sum(file.stat().st_size for file in shared.glob("experts-*")) == planned.experts_bytes
    assert planned.full_bytes - planned.resident_bytes == pytest.approx(2.5 * planned.experts_bytes, rel=0.01)


def test_verify_reads_each_record_once(shared: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(shared, tmp_path / "damaged"))
    seen: list[tuple[int, int]] = []
    assert verify_store(path, lambda done, of: seen.append((done, of))) == []
    assert seen[-1][0] == seen[-1][1]
    flip(path / "experts-00001-of-00005.safetensors", 20_000)
    assert len(verify_store(path)) == 1


def test_within_a_layer_all_experts_differ(shared: Path) -> None:
    layer = Checkpoint.open(shared).records[0]
    data = (shared / layer.file.name).read_bytes()
    size = layer._layer.record_bytes
    records = {data[at : at + size] for at in range(layer._records.offset, len(data) - size, size)}
    assert len(records) >= layer._layer.experts


@pytest.mark.parametrize("family", ["gpt_oss", "nemotron_h", "qwen3_next"])
def test_other_architectures_compute(family: str, tmp_path: Path) -> None:
    """With biases of experts, without gate projections, and with a recurrent state."""
    path = write(tmp_path / "r", family, distinct=1)
    found = streamed(path)
    assert np.isfinite(found).all() and 0.1 < found.std() < 10


def test_resident_weights_are_those_mlx_lm_loads(tmp_path: Path) -> None:
    """The same tensors, experts included, as a checkpoint: mlx-lm computes with them."""
    from engine.packing.files import write_shards
    from engine.packing.random_weights import by_layer, random_model

    model = random_model(shape("kimi_k25"))
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    write_shards(tmp_path, by_layer(model.tensors), lambda name, entry: model.values(name))
    assert 0.1 < by_mlx_lm(tmp_path).std() < 10


def test_the_disk_is_checked_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        HeadraceError, match=r"--disk-gb 0\.0001 is below the 0\.\d+ GB that kimi_k25 needs .*give --disk-gb"
    ) as e:
        plan_store(shape("kimi_k25"), 0.0001)
    one_line(e)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(random_store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(HeadraceError, match=r"needs 0\.\d+ GB in .*, and 1e-06 GB are free there; free some") as e:
        write(tmp_path / "new" / "r")
    one_line(e)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HeadraceError, match="is not empty and is not a store; give a new folder") as e:
        write(tmp_path)
    one_line(e)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    path = write(tmp_path / "r")
    before = contents(path)
    with pytest.raises(
        HeadraceError, match=r"holds a rehearsal of kimi_k25 with \d+ files, not \d+; give another folder, or remove it"
    ):
        write(path, distinct=3)
    assert contents(path) == before and not write_store(plan(), path, ROUTING, RECALL)


def test_an_unfinished_one_is_finished(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write_layer = tmp_path / "r", random_store._write_layer

    def killed(layer: object, *args: object) -> None:
        if "00002" in str(layer):
            raise OSError(28, "No space left on device")
        write_layer(layer, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(random_store, "_write_layer", killed)
    with pytest.raises(
        HeadraceError, match=r"stopped \(No space left on device\); .*give the same command again, or .*--clean"
    ):
        write(path)
    first = (path / "experts-00001-of-00005.safetensors").stat().st_mtime_ns
    monkeypatch.undo()
    write(path)
    assert contents(path) == contents(shared), "the values do not depend on when they were written"
    assert (path / "experts-00001-of-00005.safetensors").stat().st_mtime_ns == first


def test_clean_removes_exactly_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "r")
    size = sum(file.stat().st_size for file in path.iterdir())
    assert clean(path) == (size, []) and not path.exists()
    write(path)
    (path / "model-99999-of-99999.safetensors").write_bytes(b"mine")
    assert clean(path)[1] == ["model-99999-of-99999.safetensors"]
    assert contents(path) == {"model-99999-of-99999.safetensors": b"mine"}
    with pytest.raises(HeadraceError, match="is no rehearsal, so nothing was removed"):
        clean(path)


def test_clean_removes_an_unfinished_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r")
    for name in ("rehearsal.json", "config.json", "tokenizer.json"):
        (path / name).unlink()
    for file in [*path.glob("*.safetensors"), path / "model.safetensors.index.json"]:
        file.unlink()
    assert clean(path)[1] == [] and not path.exists(), "only store.json was written"


def test_the_number_of_distinct_layers_follows_from_the_disk() -> None:
    assert [plan(distinct=n).distinct for n in (1, 3, 5, 9)] == [1, 3, 5, 5]
    whole = plan(distinct=9)
    assert whole.description.content["format"] == 2 and whole.full_bytes == whole.resident_bytes + whole.experts_bytes


@pytest.mark.parametrize("family", ["kimi_k25", "qwen3_5_moe"])
def test_texts_have_a_token_for_four_characters(family: str, tmp_path: Path) -> None:
    """Whatever tokenizer the architecture has."""
    tokenizer = open_tokenizer(write(tmp_path / "r", family)).tokenizer
    assert len(tokenizer.encode("twelve chars")) == 3 and len(tokenizer.encode("a\n\nb c")) == 2


def test_the_model_has_the_mark_in_its_name(shared: Path) -> None:
    assert Checkpoint.open(shared).name == "kimi_k25 (rehearsal: random weights)"
    assert math.isclose(
        footprint(shared, Knobs(expert_bits=2)).one_token_gb, footprint(shared).one_token_gb * 0.56, rel_tol=0.2
    )
