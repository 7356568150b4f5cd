"""Tests of the library: every shape against the published number of parameters and the published sizes of checkpoints."""

from __future__ import annotations

import pytest

from engine import HeadraceError
from engine.shapes.library import names, shape, shapes

# Kimi Linear's 48 B is without the two embeddings: they have 0.76 B, and all parameters are 49.1 B.
WITHOUT_EMBEDDINGS = {"kimi_linear_48b_a3b"}
SIZED = [(s.name, c.name) for s in shapes() for c in s.checkpoints]


def test_the_library_has_the_models_that_people_stream() -> None:
    wanted = {"kimi_k2_5", "kimi_k2_7_code", "kimi_k3", "deepseek_v3_2", "deepseek_v4_flash", "qwen3_5_397b_a17b"}
    wanted |= {"qwen3_6_35b_a3b", "glm_5", "minimax_m3", "gpt_oss_20b", "gpt_oss_120b", "gemma_4_26b_a4b", "olmoe_1b_7b"}
    assert wanted <= set(names()) and len(names()) >= 20


@pytest.mark.parametrize("name", names())
def test_parameters_are_those_published(name: str) -> None:
    one = shape(name)
    assert one.published_parameters is not None
    count = one.parameters
    if name in WITHOUT_EMBEDDINGS:
        count -= 2 * one.built.hidden * one.built.vocabulary
    assert count == pytest.approx(one.published_parameters, rel=0.02)


@pytest.mark.parametrize(("name", "checkpoint"), SIZED)
def test_bytes_are_those_published(name: str, checkpoint: str) -> None:
    one = shape(name)
    published = next(c for c in one.checkpoints if c.name == checkpoint)
    group = {} if published.group_size is None else {"group_size": published.group_size}
    assert one.total_bytes(published.bits, **group) == pytest.approx(published.nbytes, rel=0.02)


@pytest.mark.parametrize("name", names())
def test_everything_published_has_its_source(name: str) -> None:
    one = shape(name)
    places = [one.source.config, one.source.read_from, one.parameters_source, *(c.source for c in one.checkpoints)]
    assert all(place is not None and place.startswith("https://") for place in places)
    assert one.source.date.startswith("2026-")


def test_an_unknown_shape_has_a_hint() -> None:
    with pytest.raises(HeadraceError, match=r"shape kimi_k2_6 is unknown; did you mean kimi_k2_5\?"):
        shape("kimi_k2_6")
