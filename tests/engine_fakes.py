"""A slot pool without files: each expert's output is its own number, and every call is recorded."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np


class FakePool:
    """`slots` slots for `members`. A requested expert takes the next slot; `calls` lists ("request", experts) and so on.

    With the native object of its layer it serves `decode`.
    """

    def __init__(self, members: list[int], slots: int, slot_of: np.ndarray, layer: Any = None) -> None:
        self.members, self.slots, self.loose = np.array(members), slots, slots
        self.guessed: list[int] = []
        self.decodes = layer is not None
        self._layer, self._slot_of = layer, slot_of
        self.holds_all = slots == len(members)
        self.settled = True
        self.changed = True
        self.calls: list[tuple[str, list[int]]] = []
        self._expert_in = [-1] * slots
        self._next = 0

    def decode(self, ids: mx.array, time: int) -> mx.array:
        self.calls.append(("decode", np.array(ids).reshape(-1).tolist()))
        self._layer.count(np.array(ids), 1, time - 1)
        self._place(np.unique(np.array(ids)).tolist(), set())
        return mx.array(self._slot_of[np.array(ids)])

    def request(self, experts: np.ndarray, keep: np.ndarray | None = None, *, speculative: bool = False) -> None:
        """Assign slots to missing experts, never one of `experts` or `keep`."""
        self.calls.append(("speculate" if speculative else "request", experts.tolist()))
        self._place(experts.tolist(), set([] if keep is None else keep.tolist()))

    def withdraw(self, experts: np.ndarray) -> None:
        self.calls.append(("withdraw", experts.tolist()))

    def _place(self, experts: list[int], keep: set[int]) -> None:
        kept = {*experts, *keep}
        for expert in experts:
            if self._slot_of[expert] >= 0:
                continue
            if -1 in self._expert_in:
                self._next = self._expert_in.index(-1)
            while self._expert_in[self._next] in kept:
                self._next = (self._next + 1) % len(self._expert_in)
            if self._expert_in[self._next] >= 0:
                self._slot_of[self._expert_in[self._next]] = -1
            self._expert_in[self._next] = expert
            self._slot_of[expert] = self._next
            self.changed = True

    def settle(self, experts: np.ndarray) -> None:
        self.calls.append(("settle", experts.tolist()))

    def guess(self, experts: np.ndarray, time: int) -> None:
        self.calls.append((f"guess for {time}", experts.tolist()))

    def take_in(self) -> None:
        self.calls.append(("take in", []))

    def waits_for(self, experts: np.ndarray) -> bool:
        return not self.settled and bool(len(experts))

    def inner(self, x: mx.array, slots: mx.array) -> mx.array:
        """Return outputs [..., slots, 1]: the number of the expert in each slot, times the input."""
        numbers = mx.array(self._expert_in)[slots].astype(mx.float32)
        return numbers[..., None] * x.reshape(*x.shape[:-1], 1, x.shape[-1])[..., :1]
