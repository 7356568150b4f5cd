"""Small copies: short axes keep their remainders, layers of one kind share a copy, and only experts are copied."""

from __future__ import annotations

import numpy as np

from engine.checkpoint.sanitize.small import KEPT, short, small_copy

BF16 = ("BF16", 2)


def test_short_axes_keep_halves_and_words() -> None:
    for size in range(1, 5000):
        assert short(size) % 8 == size % 8 and 0 < short(size) <= max(KEPT, 15)
        assert (short(size) == size) == (size <= KEPT)


def test_experts_are_found_by_their_number() -> None:
    tensors = {
        f"model.layers.{layer}.{name}": (shape, *BF16)
        for layer in range(3)
        for name, shape in {
            "mlp.experts.both": (4, 128, 64), "mlp.experts.both_bias": (4, 128), "mlp.gate.weight": (4, 64),
            "self_attn.0.k.weight": (64, 64), "conv.weight": (64, 3, 1),
            **{f"moe.{e}.fc1.weight": (128, 64) for e in range(4)},
        }.items()
    }  # fmt: skip
    small, kinds = small_copy(tensors, {4})
    assert set(kinds.values()) == {"0"}
    copied = {name.partition("layers.1.")[2] for name in small.names if "layers.1." in name}
    assert copied == {"mlp.experts.both", "mlp.experts.both_bias", *(f"moe.{e}.fc1.weight" for e in range(4))}
    assert len(set(small.names.values())) == len(copied)
    assert small.shapes[small.names["model.layers.2.mlp.experts.both"]] == (4, 8, 8)


def test_every_byte_has_a_place_of_its_own() -> None:
    tensors = {f"layers.{layer}.experts.both": ((4, 100 + layer, 20), "F32", 4) for layer in range(3)}
    small, kinds = small_copy(tensors, {4})
    assert len(set(kinds.values())) == 3
    places = [sum(small.bytes_of(c, n).astype(int) << 8 * n for n in range(small.digits)) for c in small.shapes]
    assert np.array_equal(np.sort(np.concatenate(places)), np.arange(small.nbytes))
