"""Fingerprints change with the content of any tensor, and not with the place or the split of the files."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny import write_in_order

from engine import Checkpoint, Judge, KnobError, Knobs
from engine.checkpoint import fingerprint as fingerprints
from engine.checkpoint.files.headers import read_headers
from engine.checkpoint.fingerprint import EXPERTS, another
from engine.measure.protocol import Protocol
from engine.plan.bits import compute_plan
from engine.plan.bits_file import load_plan, save_plan
from engine.plan.ceiling import routing_file
from engine.quality.reference import reference_file
from engine.routing.profile import profile_file

Make = Callable[..., Path]
JUDGE = Judge(())


def of(path: Path) -> str:
    return Checkpoint.open(path, to_pack=True).fingerprint


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats every checkpoint and every tensor as too large to be hashed whole."""
    for name, value in {"WHOLE": 0, "BLOCK": 16, "SMALL": 32, "SMALL_EXPERT": 32, "LEAST_STRIDE": 512}.items():
        monkeypatch.setattr(fingerprints, name, value)
    monkeypatch.setattr(fingerprints, "_known", {})
    fingerprints._places.cache_clear()


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda path: Path(shutil.copytree(path, tmp_path / "copy"))


KINDS = [
    ("qwen3_5_moe", "original"),  # stacked experts, shared expert, linear attention, vision, multi-token prediction
    ("deepseek_v3", "original"),  # one tensor an expert, latent attention, a dense layer, a bias of the router
    ("gpt_oss", "original"),  # blocks and scales, biases, sinks
    ("qwen3_moe", 4),  # stacked codes, scales and biases
    ("kimi_k25", "int4"),
]


@pytest.mark.parametrize("how", ["whole", "sampled"])
@pytest.mark.parametrize(("family", "bits"), KINDS)
def test_a_change_of_any_kind_of_tensor_is_another_model(
    checkpoint: Make, copied: Callable[[Path], Path], family: str, bits: object, how: str, request: pytest.FixtureRequest
) -> None:
    if how == "sampled":
        request.getfixturevalue("sampled")
    every_change_is_seen(copied(checkpoint(family, bits)))


@pytest.mark.parametrize("how", ["whole", "sampled"])
def test_a_change_of_any_part_of_a_store_is_another_model(
    store: Make, copied: Callable[[Path], Path], how: str, request: pytest.FixtureRequest
) -> None:
    if how == "sampled":
        request.getfixturevalue("sampled")
    every_change_is_seen(copied(store("qwen3_moe", 4)))


def every_change_is_seen(path: Path) -> None:
    """Flips the signs of one tensor of each kind in turn; in a stacked tensor only those of the last expert."""
    opened = Checkpoint.open(path, to_pack=True)
    tensors = read_headers(opened.files)
    kinds = {re.sub(r"\d+", "N", name): name for name in tensors}
    prints = {opened.fingerprint}
    for name in kinds.values():
        entry, experts = tensors[name], EXPERTS.search(name)
        parts = entry.shape[0] if experts and not experts["one"] and len(entry.shape) > 1 else 1
        size = entry.nbytes // parts
        with open(opened.files[entry.file], "r+b", buffering=0) as f:
            before = os.pread(f.fileno(), size, at := entry.offset + entry.nbytes - size)
            os.pwrite(f.fileno(), bytes(b ^ 0x80 for b in before), at)
            prints.add(dataclasses.replace(opened).fingerprint)
            os.pwrite(f.fileno(), before, at)
    assert len(prints) == 1 + len(kinds) and len(kinds) > 15
    assert dataclasses.replace(opened).fingerprint == of(path) == opened.fingerprint


def test_one_weight_of_a_small_checkpoint_is_enough(checkpoint: Make, copied: Callable[[Path], Path]) -> None:
    path = copied(checkpoint("deepseek_v3"))
    before, file = of(path), path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 1
    file.write_bytes(content)
    assert of(path) != before


def test_what_a_sample_sees_of_a_large_tensor(sampled: None, tmp_path: Path, checkpoint: Make) -> None:
    """Any changed run of bytes as long as a stride plus a block is detected."""
    path = Path(shutil.copytree(checkpoint("deepseek_v3"), tmp_path / "copy"))
    opened = Checkpoint.open(path)
    before, entry = opened.fingerprint, read_headers(opened.files)["lm_head.weight"]
    file, rng = opened.files[entry.file], np.random.default_rng(0)
    content = file.read_bytes()
    for at in rng.integers(0, entry.nbytes - 528, 20).tolist():
        changed = bytearray(content)
        changed[entry.offset + at : entry.offset + at + 528] = bytes(528)
        file.write_bytes(changed)
        assert of(path) != before
    assert opened.blocks.nbytes.sum() < len(content) / 4


@pytest.mark.parametrize("how", ["whole", "sampled"])
def test_the_same_in_other_files(checkpoint: Make, tmp_path: Path, how: str, request: pytest.FixtureRequest) -> None:
    """Renamed folder, other dates, other shards, or behind a link."""
    if how == "sampled":
        request.getfixturevalue("sampled")
    path = checkpoint("qwen3_moe", 4)
    other = Path(shutil.copytree(path, tmp_path / "other", copy_function=shutil.copyfile))
    weights = dict(mx.load(str(other / "model.safetensors")))
    for file in other.glob("model*"):
        file.unlink()
    names = sorted(weights)
    write_in_order(other / "model-1.safetensors", {n: weights[n] for n in names[::2]})
    write_in_order(other / "model-2.safetensors", {n: weights[n] for n in names[1::2]})
    (other / "README.md").write_text("what it is")
    (tmp_path / "link").symlink_to(other)
    assert of(path) == of(other) == of(tmp_path / "link")
    assert of(path).startswith("2-") and len(of(path)) == 18


def test_configuration_and_tokenizer_count(checkpoint: Make, copied: Callable[[Path], Path]) -> None:
    path = copied(checkpoint("deepseek_v3"))
    prints = [of(path)]
    for name, old, new in (
        ("config.json", '"vocab_size"', '"rms_norm_eps": 1e-4, "vocab_size"'),
        ("tokenizer.json", '"<eos>"', '"<end>"'),
        ("tokenizer_config.json", '"<eos>"', '"<end>"'),
    ):
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new))
        prints.append(of(path))
    (path / "tiktoken.model").write_text("IQ== 0\n")
    prints.append(of(path))
    assert len(set(prints)) == 5


def test_what_is_kept_and_planned_for_a_model_is_not_used_for_another(
    checkpoint: Make, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = copied(checkpoint("deepseek_v3"))
    one = Checkpoint.open(path)
    save_plan(tmp_path / "plan", compute_plan(one, Knobs(expert_bits=4)), one, Knobs(expert_bits=4), None)
    kept = [profile_file(one), reference_file(one, JUDGE), routing_file(one, JUDGE, Protocol())]
    entry = read_headers(one.files)["model.layers.0.self_attn.o_proj.weight"]
    with open(one.files[entry.file], "r+b") as f:
        f.seek(entry.offset)
        f.write(bytes(entry.nbytes))
    other = Checkpoint.open(path)
    assert not {*kept} & {profile_file(other), reference_file(other, JUDGE), routing_file(other, JUDGE, Protocol())}
    with pytest.raises(KnobError, match=r"plan is for another model, copy \(2-\w{16}\), not copy \(2-\w{16}\); make"):
        load_plan(tmp_path / "plan", other)


def test_an_older_definition_is_not_called_another_model() -> None:
    new = "2-" + "a" * 16
    assert another("b" * 16, "c" * 16) == another(new, "2-" + "b" * 16) == another("mine", new) == "another model"
    assert "older version" in another("a" * 16, new)
