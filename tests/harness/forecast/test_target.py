"""Tests of the model of a forecast: shapes, folders, and what is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import HeadraceError
from engine.shapes.library import shape
from harness.forecast.target import target

KIMI_MINI = Path(__file__).resolve().parents[3] / "experiments" / "kimi_mini" / "checkpoint"


def test_a_shape_at_its_own_bits_and_below() -> None:
    found = target("gpt_oss_20b")
    assert [(width.bits, width.own) for width in found.widths] == [(4, True), (3, False), (2, False)]
    assert found.disk_gb(found.widths[0]) == pytest.approx(shape("gpt_oss_20b").total_bytes() / 1e9)
    assert found.slot_gb(found.widths[0], widened=True) > found.slot_gb(found.widths[0], widened=False)
    assert found.trace is None and found.base_bits is None


def test_a_shape_whose_format_mlx_lacks_is_meant_as_converted() -> None:
    found = target("deepseek_v3")
    assert found.base_bits == 4 and found.widths[0].bits == 4 and found.widths[0].own


def test_a_shape_without_a_module_has_sizes() -> None:
    found = target("deepseek_v4_flash")
    assert found.checkpoint is None and found.embedding_bytes > 0
    assert found.slot_gb(found.widths[0], widened=False) == found.widths[0].expert_bytes / 1e9


def test_a_folder_has_its_trace() -> None:
    found = target(str(KIMI_MINI))
    assert (found.layers, found.all_layers, found.experts, found.top_k) == (6, 7, 64, 4)
    assert found.trace is not None and found.files and found.resident_gb(widened=True) > found.resident_gb(widened=False)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("kimi_k25", r"kimi_k25 is neither a folder nor a published shape; did you mean kimi_k2_5\?"),
        (str(Path(__file__).parent), "config.json"),
    ],
)
def test_what_is_no_model(what: str, said: str) -> None:
    with pytest.raises(HeadraceError, match=said):
        target(what)


def test_a_folder_that_is_not_there_has_a_short_line() -> None:
    with pytest.raises(HeadraceError, match=r"^/no/such is neither a folder nor a published shape; headrace shapes lists"):
        target("/no/such")


def test_a_store_has_the_widths_of_its_levels(tmp_path: Path) -> None:
    from engine.packing.pack import pack_store

    pack_store(KIMI_MINI, tmp_path / "store", (4, 8))
    found = target(str(tmp_path / "store"))
    assert [(width.bits, width.own) for width in found.widths] == [(8, True), (4, True)]
    assert found.widths[0].expert_bytes > found.widths[1].expert_bytes and found.trace is None
