"""Reads: the length of the contiguous byte ranges that an expert is read from."""

from __future__ import annotations

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.experts import ExpertLayer


def largest_range(checkpoint: Checkpoint) -> int:
    """Return the bytes of the longest range of any layer's first expert. A larger block reads nothing more at once."""
    return max(max(_ranges(layer)) for layer in checkpoint.layers)


def _ranges(layer: ExpertLayer) -> list[int]:
    """Lengths of the ranges of a layer's first expert, with adjacent ones joined, as the reader joins them."""
    tensors = [part for tensor in layer.tensors for part in tensor.parts or (tensor,)]
    lengths: list[int] = []
    end = (-1, -1)
    for file, offset, nbytes in sorted((int(t.file[0]), int(t.offset[0]), t.stored_bytes) for t in tensors):
        if (file, offset) == end:
            lengths[-1] += nbytes
        else:
            lengths.append(nbytes)
        end = (file, offset + nbytes)
    return lengths
