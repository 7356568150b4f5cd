"""Arguments: the one that gives the experts per token is found in every family, wherever it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tiny import CONFIGS

from engine.checkpoint.built.arguments import named, with_top_k
from engine.checkpoint.built.model import built_model

HERE = Path("here")


def entries(config: dict[str, Any], place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found = {}
    for key, value in config.items():
        found |= entries(value, (*place, key)) if isinstance(value, dict) else {(*place, key): repr(value)}
    return found


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_one_argument_is_changed(family: str) -> None:
    config = copy.deepcopy(CONFIGS[family])
    built = built_model(HERE, config)
    if built.top_k < 2:
        pytest.skip(f"{family} chooses one expert")
    changed = with_top_k(HERE, config, built.top_k - 1)
    assert changed is not None and config == CONFIGS[family]
    assert len(entries(changed).items() - entries(config).items()) == 1
    assert [s.top_k for s in built_model(HERE, changed).switches] == [min(s.top_k, built.top_k - 1) for s in built.switches]


def test_an_argument_that_config_json_leaves_to_its_default() -> None:
    for family, wrap in (("gpt_oss", False), ("mixtral", False), ("glm4_moe_lite", False)):
        config = {k: v for k, v in CONFIGS[family].items() if k != "num_experts_per_tok"}
        built = built_model(HERE, config)
        changed = with_top_k(HERE, config, 1)
        assert built.top_k > 1 and not wrap and changed == {**config, "num_experts_per_tok": 1}
        assert with_top_k(HERE, {**config, "num_experts_per_tok": built.top_k}, 1) == changed


def test_other_arguments_of_the_same_value_stay() -> None:
    """deepseek_v3 with as many heads, groups and layers as experts per token."""
    config = {**CONFIGS["deepseek_v3"], "n_group": 4, "topk_group": 4}
    assert {k for k, v in config.items() if v == 4} > {"num_experts_per_tok", "num_hidden_layers", "num_attention_heads"}
    assert with_top_k(HERE, config, 3) == {**config, "num_experts_per_tok": 3}


def test_no_argument_gives_more_than_there_are() -> None:
    assert with_top_k(HERE, CONFIGS["qwen3_moe"], 0) is None


def test_the_name_of_a_number() -> None:
    config = {"num_experts": 8, "heads": 8, "text_config": {"n_routed_experts": 8, "flag": True}}
    assert named(config, 8, "expert") == "config.json has n_routed_experts=8, num_experts=8"
    assert named(config, 8, "hidden") == "config.json has heads=8, n_routed_experts=8, num_experts=8"
    assert named(config, 1, "hidden") == "mlx-lm takes 1"
