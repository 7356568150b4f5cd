"""Built model: its numbers are those of mlx-lm's own arguments and modules, however config.json gives them."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import _get_classes, load_model
from sparse_kimi import KIMI_K25
from tiny import CONFIGS

from engine import Checkpoint, CheckpointError, Knobs, load
from engine.checkpoint.built.model import BuiltModel, built_model

Make = Callable[..., Path]
HERE = Path("here")
ERNIE = {
    "model_type": "ernie4_5_moe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 512, "use_bias": False, "tie_word_embeddings": True, "moe_num_experts": 8, "moe_k": 2,
    "moe_layer_start_index": 1, "moe_num_shared_experts": 1,
}  # fmt: skip


def shape(built: BuiltModel) -> object:
    return built.switches, dict(built.parameters), built.hidden, built.vocabulary


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    return dict(config.get("text_config", config))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_numbers_are_those_of_the_loaded_model(checkpoint: Make, family: str) -> None:
    built, (model, _) = built_model(HERE, CONFIGS[family]), load_model(checkpoint(family), lazy=True)
    assert built.layers == len(model.layers) and 0 < built.top_k <= min(switch.experts for switch in built.switches)
    logits = model(mx.array([[1, 2]]))
    modules = dict(model.named_modules())
    assert built.vocabulary == logits.shape[-1]
    for switch in built.switches:
        first = modules[switch.path].get("up_proj", modules[switch.path].get("fc1"))
        assert (switch.experts, switch.rows, switch.columns) == tuple(first.weight.shape)


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Defaults of mlx-lm's arguments for the innermost part of a configuration that has them."""
    fields = {}
    for part in (config, config.get("text_config", {})):
        if "model_type" in part:
            try:
                kind = _get_classes({"model_type": part["model_type"].removesuffix("_text")})[1]
            except ValueError:
                continue
            fields |= {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    return fields


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_what_config_json_leaves_out_is_the_default(family: str) -> None:
    """A key that is absent has the value of mlx-lm's arguments, for the engine as for mlx-lm."""
    config = copy.deepcopy({**CONFIGS, "ernie4_5_moe": ERNIE}[family])
    part = config.get("text_config", config)
    for key, default in arguments(config).items():
        if key in part and type(default) in (int, float, bool) and key != "model_type":
            without = copy.deepcopy(config)
            del without.get("text_config", without)[key]
            explicit = copy.deepcopy(config)
            explicit.get("text_config", explicit)[key] = default
            outcomes = []
            for one in (without, explicit):
                try:
                    outcomes.append(shape(built_model(HERE, one)))
                except CheckpointError as e:
                    outcomes.append(str(e))
            if not any("required" in str(outcome) or "KeyError" in str(outcome) for outcome in outcomes):
                assert outcomes[0] == outcomes[1], key


def test_names_of_the_arguments_do_not_matter() -> None:
    assert built_model(HERE, ERNIE).top_k == 2
    assert built_model(HERE, {k: v for k, v in ERNIE.items() if k != "moe_k"}).top_k == 1  # mlx-lm's default


@pytest.mark.parametrize("changed", [
    {"quantization": None}, {"quantization_config": None}, {"vision_config": {"top_k": 7, "num_hidden_layers": 99}},
    {"num_experts_per_tok": 11, "num_local_experts": 3, "moe_topk": 5},
])  # fmt: skip
def test_entries_that_mlx_lm_does_not_read_change_nothing(changed: dict[str, Any]) -> None:
    for family in ("kimi_k25", "qwen3_5_moe"):  # both have their numbers in text_config only
        assert shape(built_model(HERE, {**changed, **CONFIGS[family]})) == shape(built_model(HERE, CONFIGS[family]))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_tagged_floats_at_any_depth(checkpoint: Make, tmp_path: Path, family: str) -> None:
    """transformers tags floats that are not finite. mlx-lm removes the tags, also from what it is handed."""
    path = tmp_path / "tagged"
    path.mkdir()
    for file in checkpoint(family).iterdir():
        (path / file.name).symlink_to(file)
    config = json.loads((path / "config.json").read_text())
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        part["some_limit"] = {"__float__": "Infinity"}
        part["some_table"] = [{"deep": {"__float__": "-Infinity"}}, {"__float__": "NaN"}]
    rope = config.get("text_config", config)
    if "rope_theta" in rope and family != "gpt_oss":
        rope["rope_theta"] = {"__float__": "Infinity"}  # every architecture computes with it
    (path / "config.json").unlink()
    (path / "config.json").write_text(json.dumps(config))
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    expected = model(mx.array([[7, 80, 3]]))[0]
    with load(path, Knobs(cache_gb=0.01)) as engine:
        assert np.allclose(engine.logits([7, 80, 3]), np.array(expected), atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "moonbeam"}, "mlx-lm has no architecture moonbeam; give a model that it has, or update mlx-lm"),
    ({"model_type": "switch_layers"}, "mlx-lm has no architecture switch_layers"),
    ({"model_type": "../base"}, "mlx-lm has no architecture"),
    ({"model_type": ""}, "mlx-lm has no architecture"),
    ({"num_experts_per_tok": 99}, r"cannot build qwen3_moe from config\.json \(ValueError: \[argpartition\]"),
    ({"hidden_size": None}, r"cannot build qwen3_moe from config\.json \(TypeError"),
    ({"num_attention_heads": 0}, r"cannot build qwen3_moe from config\.json \(\w+Error"),
    ({"model_file": "modeling.py"}, r"brings code for its architecture \('modeling\.py'\), which is not run"),
])  # fmt: skip
def test_a_configuration_that_mlx_lm_cannot_build(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as e:
        built_model(HERE, {**CONFIGS["qwen3_moe"], **change})
    assert "\n" not in str(e.value)


def test_a_missing_argument_is_named() -> None:
    config = {k: v for k, v in CONFIGS["qwen3_moe"].items() if k != "num_experts"}
    with pytest.raises(CheckpointError, match=r"cannot build qwen3_moe .*'num_experts'.*copy config\.json again"):
        built_model(HERE, config)


def test_building_changes_nothing(checkpoint: Make) -> None:
    """Neither MLX's random numbers nor the configuration, whose nested parts mlx-lm changes."""
    config = copy.deepcopy(CONFIGS["kimi_k25"])
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(4,))
    mx.random.seed(3)
    built_model(HERE, {**config, "other": 1})
    assert mx.array_equal(mx.random.uniform(shape=(4,)), expected) and config == CONFIGS["kimi_k25"]


def test_a_dense_model_has_no_switches() -> None:
    config = {"model_type": "qwen3_moe", **CONFIGS["qwen3_moe"], "mlp_only_layers": [0, 1, 2, 3, 4]}
    assert built_model(HERE, config).switches == () and built_model(HERE, config).top_k == 0


def test_the_full_shape_takes_a_moment() -> None:
    begin = time.perf_counter()
    built = built_model(HERE, KIMI_K25)
    assert time.perf_counter() - begin < 5 and (built.layers, built.top_k, len(built.switches)) == (61, 8, 60)


def test_a_null_in_config_json_is_what_mlx_lm_takes_it_for(checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "null"
    path.mkdir()
    for file in checkpoint("qwen3_moe").iterdir():
        (path / file.name).symlink_to(file)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").unlink()
    nulls = dict.fromkeys(
        ("quantization", "quantization_config", "text_config", "rope_scaling", "sliding_window", "moe_topk")
    )
    (path / "config.json").write_text(json.dumps({**config, **nulls}))
    assert Checkpoint.open(path).top_k == 3
    with load(path, Knobs(cache_gb=0.0005)) as engine:
        assert engine.logits([1, 2]).shape == (2, 256)
