"""The description of a store: damaged, changed or of another version, it is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import layer_file, one_line

from engine import CheckpointError, KnobError, Knobs, load
from engine.checkpoint.store.description import _digest, read_description

Make = Callable[..., Path]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "store.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_missing_layer(packed: Path) -> None:
    layer_file(packed, 2).unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 5 layers \(experts-00002.*same pack command again") as e:
        load(packed)
    one_line(e)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '"x"', "null", "{}", '{"format": 2}', '{"format": "2", "digest": ""}', "[" * 100_000]
)
def test_damaged_description(packed: Path, content: str) -> None:
    (packed / "store.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"store\.json is damaged \(.*copy it again, or pack the model again") as e:
        load(packed)
    one_line(e)


@pytest.mark.parametrize("version", [1, 4, 99])
def test_another_version_of_the_format(packed: Path, version: int) -> None:
    edit(packed, lambda content: content.update(format=version))
    with pytest.raises(
        CheckpointError, match=rf"has format {version}, but this version reads formats 2 and 3; pack the model again"
    ) as e:
        load(packed)
    one_line(e)


def test_changed_description(packed: Path) -> None:
    edit(packed, lambda content: content["layers"][0]["projections"][0].update(group_size=64))
    with pytest.raises(CheckpointError, match=r"store\.json is damaged \(its digest is not") as e:
        load(packed)
    one_line(e)


def test_store_under_another_configuration(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "num_experts": 10}))
    with pytest.raises(CheckpointError, match=r"has 12 experts, but config\.json has num_experts=10"):
        load(packed)


def test_a_width_that_the_store_lacks(packed: Path) -> None:
    with pytest.raises(KnobError, match=r"expert_bits=3 is not a level of the store packed; use one of 2, 4") as e:
        load(packed, Knobs(expert_bits=3))
    one_line(e)


def test_description_as_documented(store: Make) -> None:
    """The documented fields suffice to read a store."""
    path = store("kimi_k25", "int4")
    described = read_description(path)
    assert described is not None and described.levels == (2, 4)
    assert read_description(path.parent) is None
    kinds = {(p.symmetric, p.exact, p.group_size, p.dtype, p.bias) for layer in described.layers for p in layer.projections}
    assert kinds == {(True, True, 32, "BF16", None)}
    names = {t.name for t in described.source_tensors}
    assert "language_model.model.layers.1.mlp.experts.*.gate_proj.weight_packed" in names
    assert {t.experts for t in described.source_tensors} == {16}


def share(content: dict[str, Any], of: int = 0) -> None:
    """Give layer 1 the records of layer `of`, with a valid digest."""
    content["layers"][1].update(records=content["layers"][of]["block"], file=content["layers"][of]["file"])
    content["format"] = 3
    content["digest"] = _digest({key: content[key] for key in content if key != "digest"})


def test_a_layer_may_have_the_records_of_another(packed: Path) -> None:
    before = read_description(packed)
    edit(packed, share)
    described = read_description(packed)
    assert before is not None and described is not None and before.own == before.layers
    assert [layer.block for layer in described.own] == [layer.block for n, layer in enumerate(before.layers) if n != 1]
    assert described.layers[1].tensors == described.layers[0].tensors and described.digest != before.digest


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: content.update(format=2), "shares records, which format 2 does not have"),
        (lambda content: content["layers"][1].update(records="model.layers.9.mlp"), "layers.9.mlp, which do not fit"),
        (lambda content: content["layers"][1].update(file=content["layers"][2]["file"]), "which do not fit"),
        (lambda content: content["layers"][1].update(experts=3), "which do not fit"),
        (lambda content: content["layers"][1].update(records=[1]), "does not describe a store"),
    ],
)
def test_records_that_do_not_fit(packed: Path, change: Callable[[dict[str, Any]], None], match: str) -> None:
    def wrong(content: dict[str, Any]) -> None:
        share(content)
        change(content)
        content["digest"] = _digest({key: content[key] for key in content if key != "digest"})

    edit(packed, wrong)
    with pytest.raises(CheckpointError, match=match) as e:
        read_description(packed)
    one_line(e)
