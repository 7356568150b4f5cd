"""Verification names every damaged part of a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stores import command, flip, one_line

from engine import Checkpoint, CheckpointError
from engine.packing.verify import verify_store

Make = Callable[..., Path]


def test_verify_names_every_damaged_part(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Checkpoint.open(packed)
    layer, file = opened.layers[1], opened.records[1].file
    assert opened.store is not None
    sections = opened.store.layers[1].sections
    start = int(min(t.offset[0] for t in layer.at(dict.fromkeys(layer.projections, 2)).tensors))
    size = opened.store.layers[1].record_bytes
    expected = []
    for expert, number in ((0, 0), (3, 5), (3, len(sections) - 1), (11, 7)):
        section = sections[number]
        flip(file, start + expert * size + section.offset + section.nbytes // 2, expert % 8)
        expected.append((expert, f"{section.projection} {section.tensor} of {(2, 4)[section.level]} bits"))
    flip(file, start + 6 * size - 1)  # what fills the fifth expert's last page
    expected.append((5, "padding of the last page"))
    flip(file, start + 12 * size + 8 * 6 * 4)  # the fifth expert's errors
    expected.append((4, "table of errors"))
    shard = next(packed.glob("model*.safetensors"))
    flip(shard, shard.stat().st_size - 7)
    status, out, err = command(capsys, "pack", packed, "--verify")
    lines = [line for line in out.splitlines() if line.endswith("is damaged")]
    named = {f"{file.name}: {layer.block} expert {e}: {what} is damaged" for e, what in expected}
    assert status == 2 and set(lines) == {*named, f"{shard.name}: a resident tensor is damaged"}
    assert len(lines) == 7 and err.count("\n") == 1 and "damaged parts: 7; copy their files again" in err


def test_missing_checksums_of_the_rest(packed: Path) -> None:
    (packed / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no checksums of the resident tensors") as e:
        verify_store(packed)
    one_line(e)
