"""Estimate: the predicted size of a store is that of the packed one, and its time follows from measured speeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Checkpoint
from engine.packing.estimate import MEASURED_MBPS, estimate
from engine.packing.pack import pack_store

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("bits", "kind", "levels"),
    [
        (None, "float", (4, 8)),
        (4, "affine", (2, 4)),
        (8, "8-bit affine", (2, 4, 8)),
        ("mxfp4", "mxfp4", (2, 4)),
        ("int4", "INT4", (2, 4)),
        ("fp8", "fp8", (4, 8)),
    ],
)
def test_size_and_shares_are_those_of_the_store(
    bits: object, kind: str, levels: tuple[int, ...], checkpoint: Make, tmp_path: Path
) -> None:
    path = checkpoint("kimi_k2", bits)
    source = Checkpoint.open(path, to_pack=True)
    found = estimate(source)
    assert (found.kind, found.levels) == (kind, levels)
    done = pack_store(path, tmp_path / "store", found.levels)
    assert found.store_gb == pytest.approx(done.store_bytes / 1e9) and found.source_gb == pytest.approx(
        done.source_bytes / 1e9
    )
    store = Checkpoint.open(tmp_path / "store")
    names = store.layers[0].projections
    for share, level in zip(found.shares, levels, strict=True):
        at = sum(layer.at(dict.fromkeys(names, level)).expert_bytes * layer.experts for layer in store.layers)
        assert share == pytest.approx(at / source.expert_bytes)
    assert found.seconds is not None and found.seconds[1] == pytest.approx(found.source_gb * 1000 / MEASURED_MBPS[kind][0])


def test_a_format_that_was_not_measured_has_no_time(checkpoint: Make) -> None:
    found = estimate(Checkpoint.open(checkpoint("kimi_k2", "mxfp8"), to_pack=True))
    assert (found.kind, found.mbps, found.seconds) == ("mxfp8", None, None)
