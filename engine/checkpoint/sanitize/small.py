"""Small copies: stored tensors with short axes, in which every byte tells its own place.

mlx-lm's `sanitize` moves elements without looking at their values, so the places of a small result give the rule for the
real one. A byte holds one digit of its place to the base 256; `sanitize` runs once for each digit.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

LAYER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")  # the first number in a name is the layer's
KEPT = 16  # axes up to this length stay as they are
Shapes = Mapping[str, tuple[tuple[int, ...], str, int]]  # name -> shape, type, bytes of an item


@dataclass(frozen=True)
class Small:
    """A small copy of the tensors that may hold experts. Layers with the same tensors share one copy."""

    names: Mapping[str, str]  # tensor -> copy
    shapes: Mapping[str, tuple[int, ...]]  # copy -> short shape
    item_bytes: Mapping[str, int]
    stacked: frozenset[str]  # copies that hold all experts, one after the other
    starts: Mapping[str, int]  # copy -> place of its first byte
    nbytes: int

    @property
    def digits(self) -> int:
        """Digits of a place to the base 256."""
        return max(1, math.ceil(math.log(max(2, self.nbytes), 256)))

    def bytes_of(self, copy: str, digit: int) -> np.ndarray:
        """One digit of every byte's place, uint8 [bytes]."""
        nbytes = math.prod(self.shapes[copy]) * self.item_bytes[copy]
        return ((np.arange(nbytes, dtype=np.int64) + self.starts[copy]) >> (8 * digit)).astype(np.uint8)


def short(size: int) -> int:
    """A short length for an axis, with the same remainder modulo 8, so that halves and words stay whole."""
    return size if size <= KEPT else 8 + size % 8


def small_copy(tensors: Shapes, experts: Collection[int]) -> tuple[Small, dict[int, str]]:
    """The small copy for layers with these numbers of `experts`, and the kind of every layer: layers of one kind have the
    same tensors, but for the layer's number."""
    stacked, single = _candidates(tensors, experts)
    layers: dict[int, list[str]] = defaultdict(list)
    for name in (*stacked, *single):
        if m := LAYER.search(name):
            layers[int(m[0])].append(name)
    kinds: dict[frozenset[tuple[str, str]], str] = {}
    kind_of, names = {}, {}
    shapes, items, starts, whole, at = {}, {}, {}, set(), 0
    for number, own in sorted(layers.items()):
        starred = {name: LAYER.sub("*", name, count=1) for name in own}
        kind = frozenset((star, f"{tensors[name][:2]}") for name, star in starred.items())
        new = kind not in kinds
        kind_of[number] = kinds.setdefault(kind, str(len(kinds)))
        for name, star in sorted(starred.items()):
            copy = names[name] = f"{kind_of[number]} {star}"
            if new:
                shape, _, items[copy] = tensors[name]
                kept = 1 if name in stacked else 0
                shapes[copy], starts[copy] = (*shape[:kept], *map(short, shape[kept:])), at
                at += math.prod(shapes[copy]) * items[copy]
                whole |= {copy} if kept else set()
    return Small(names, shapes, items, frozenset(whole), starts, at), kind_of


def _candidates(tensors: Shapes, experts: Collection[int]) -> tuple[set[str], set[str]]:
    """Names of the tensors that may hold all experts, and of those that may hold one. A fused shared expert counts as one
    more."""
    counts = {n + extra for n in experts for extra in (0, 1)}
    stacked = {n for n, (shape, *_) in tensors.items() if len(shape) > 2 and shape[0] in counts and LAYER.search(n)}
    owners = {name.rpartition(".")[0] for name in stacked}
    stacked |= {n for n, (shape, *_) in tensors.items() if shape and shape[0] in counts and n.rpartition(".")[0] in owners}
    families: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in tensors:
        numbers = list(LAYER.finditer(name))
        if len(numbers) > 1 and name not in stacked:
            last = numbers[-1]
            families[name[: last.start()], name[last.end() :]][int(last[0])] = name
    single = {n for found in families.values() if len(found) in experts and max(found) < len(found) for n in found.values()}
    return stacked, single
