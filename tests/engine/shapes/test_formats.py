"""Tests of the bytes of number formats."""

from __future__ import annotations

import pytest

from engine import HeadraceError
from engine.shapes.formats import BF16, PUBLISHED, affine


@pytest.mark.parametrize(
    ("name", "bits_a_weight"), [("bf16", 16), ("int4_g32", 4.5), ("mxfp4", 4.25), ("fp8_b128", 8 + 32 / 128**2)]
)
def test_bits_of_a_weight(name: str, bits_a_weight: float) -> None:
    assert PUBLISHED[name].nbytes(1 << 20) == bits_a_weight * (1 << 20) / 8


def test_affine_is_mlx_s_format() -> None:
    assert affine(4, 64).nbytes(64) == 32 + 2 + 2 and affine(16, 64) is BF16


@pytest.mark.parametrize(("bits", "group_size"), [(7, 64), (4, 16), (0, 64)])
def test_what_mlx_does_not_have_is_refused(bits: int, group_size: int) -> None:
    with pytest.raises(HeadraceError, match=f"bits={bits} in groups of {group_size} is no format of MLX; use 2, 3, 4"):
        affine(bits, group_size)
