"""Configuration: config.json and the shard index must agree with the tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Checkpoint, CheckpointError, Knobs, load
from engine.checkpoint.config import model_name

Make = Callable[..., Path]


@pytest.fixture
def damaged(checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("deepseek_v3", None, True), tmp_path / "damaged"))


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json; give"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("content", ["{", '["a"]', "{}"])
def test_bad_config(damaged: Path, content: str) -> None:
    (damaged / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as e:
        Checkpoint.open(damaged)
    one_line(e)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_routed_experts": 15}, r"has 16 experts, but config\.json has n_routed_experts=15; copy both"),
        ({"moe_intermediate_size": 64}, r"has 32 rows per expert, but config\.json has moe_intermediate_size=64"),
        ({"hidden_size": 32}, r"has 64 columns per expert, but config\.json has hidden_size=32"),
        (
            {"num_hidden_layers": 5},
            r"lacks 18 tensors \(model\.layers\.4\.\S+ is the first\), which mlx-lm needs by its config\.json",
        ),
        ({"num_hidden_layers": 3, "first_k_dense_replace": 0}, r"lacks 8 tensors \(model\.layers\.0\.mlp\.gate"),
        ({"num_experts_per_tok": 17}, r"mlx-lm cannot build deepseek_v3 from config\.json \(ValueError: \[argpartition\]"),
        ({"num_attention_heads": 3}, "mlx-lm cannot open deepseek_v3"),
        ({"vocab_size": "many"}, r"mlx-lm cannot build deepseek_v3 from config\.json \(TypeError"),
        ({"text_config": 3}, "text_config=3"),
    ],
)
def test_a_configuration_of_another_model(damaged: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, **change}))
    for knobs in (Knobs(), Knobs(cache_gb=0.001)):
        with pytest.raises(CheckpointError, match=message) as e:
            load(damaged, knobs)
        one_line(e)


@pytest.mark.parametrize(
    "wrong", [{"bits": 4, "group_size": 32}, {"bits": 3, "group_size": 64}, {"bits": 3, "mode": "mxfp4"}]
)
def test_a_quantization_that_the_configuration_denies(checkpoint: Make, tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = Path(shutil.copytree(checkpoint("qwen3_moe", 3), tmp_path / "copy"))
    config = json.loads((path / "config.json").read_text())
    config["quantization"]["model.layers.1.mlp.switch_mlp.up_proj"] = wrong
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.switch_mlp\.up_proj is .*'bits': 3.* but config\.json has"
    ) as e:
        Checkpoint.open(path)
    one_line(e)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/kimi_mini/checkpoint", "kimi_mini"),
        ("/data/Qwen3-30B-A3B-4bit", "Qwen3-30B-A3B-4bit"),
        ("/data/Qwen3-30B-A3B/mlx/", "Qwen3-30B-A3B"),
        ("/data/big/Model", "big"),
        ("/hub/models--moonshotai--Kimi-K2.5/snapshots/0123456789abcdef0123456789abcdef01234567", "moonshotai/Kimi-K2.5"),
        ("/hub/models--org--a--b/snapshots/main", "org/a--b"),
        ("/data/big/snapshot/89abcdef0123", "big"),
        ("/data/one/../two", "two"),
        ("/checkpoint", "checkpoint"),
    ],
)
def test_the_name_is_that_of_the_folder(path: str, name: str) -> None:
    assert model_name(path) == name


def test_a_link_is_not_followed(tmp_path: Path, checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").symlink_to(checkpoint("deepseek_v3"))
    assert Checkpoint.open(tmp_path / "mine").name == "mine"
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    assert model_name(".") == "folder"
