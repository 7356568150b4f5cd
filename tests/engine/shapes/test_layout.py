"""Tests of a shape's tensors."""

from __future__ import annotations

import pytest

from engine import HeadraceError
from engine.shapes.layout import nbytes
from engine.shapes.library import shape


@pytest.mark.parametrize(("name", "bits"), [("olmoe_1b_7b", 4), ("olmoe_1b_7b", None), ("gpt_oss_20b", None)])
def test_experts_are_those_of_the_arithmetic(name: str, bits: int | None) -> None:
    one = shape(name)
    made = one.layout(bits)
    assert sum(nbytes(t) for n, t in made.tensors.items() if made.is_expert(n)) == one.experts_bytes(bits)
    assert made.resident_bytes == one.resident_bytes(bits)


def test_routers_keep_8_bits(capsys: pytest.CaptureFixture[str]) -> None:
    quantization = shape("qwen3_30b_a3b").layout(4, 64).config["quantization"]
    assert (quantization["bits"], quantization["group_size"]) == (4, 64)
    assert quantization["model.layers.0.mlp.gate"]["bits"] == 8
    assert capsys.readouterr().out == "", "mlx-lm prints the average bits"


def test_in_own_formats_only_experts_are_quantized() -> None:
    made = shape("kimi_k2_5").layout()
    assert made.symmetric and not any(made.is_expert(name) and name.endswith(".biases") for name in made.tensors)
    assert {t[0] for name, t in made.tensors.items() if not made.is_expert(name)} == {"BF16"}
    assert made.config["quantization"]["language_model.lm_head"] is False


@pytest.mark.parametrize(
    ("name", "said"), [("deepseek_v3", "is published in FP8, with which MLX"), ("deepseek_v4_pro", "no architecture")]
)
def test_what_cannot_be_built_is_refused(name: str, said: str) -> None:
    with pytest.raises(HeadraceError, match=said):
        shape(name).layout()
