"""Eviction: assigns slots to experts and chooses the expert to evict.

The policy is decayed frequency with a half-life, one continuous knob from LRU to LFU. An expert's warmth at time T is the
sum over its uses t of 2^((t - T) / half_life). Comparing warmth needs no decay sweep: log2 of the sum without the common
factor 2^(-T / half_life) does not change between uses, so each use is one addition in the log domain. A half-life near 0
keeps only the last use (LRU), an infinite one counts all uses alike (LFU). On real traces 8 to 32 tokens are best, within
0.2 points of every more complex policy.
"""

from __future__ import annotations

import numpy as np

NO_EXPERTS = np.array([], np.int64)


class DecayedFrequency:
    """Warmth of every expert of one layer or, with a shape [layers, experts], of all layers. Time is counted in tokens."""

    def __init__(self, shape: int | tuple[int, ...], half_life: float) -> None:
        self._half_life = half_life
        self.warmth = np.full(shape, -np.inf)

    def layer(self, number: int) -> DecayedFrequency:
        """The policy of one layer, which shares this one's memory."""
        one = DecayedFrequency(0, self._half_life)
        one.warmth = self.warmth[number]
        return one

    def use(self, experts: np.ndarray | tuple[np.ndarray, ...], times: np.ndarray | int) -> None:
        """Count one use of each of `experts` (an index into `warmth`, repeats allowed) at the token numbers `times`."""
        np.logaddexp2.at(self.warmth, experts, times / self._half_life)

    def if_used(self, expert: int, time: int) -> float:
        """The warmth that `expert` would have after a use at token `time`."""
        return float(np.logaddexp2(self.warmth[expert], time / self._half_life))


class SlotTable:
    """The assignment of `slots` slots to the experts `members` of a layer. `pinned` experts are never evicted.

    `slot_of` (int32 [experts], -1: not cached) and `policy` belong to the layer and are shared by its pools, each of which
    changes only its own members. `loose` is the number of slots that are not pinned. `guessed` maps experts placed on
    speculation and not used yet to the token number they were placed for.
    """

    def __init__(
        self, members: np.ndarray, slots: int, policy: DecayedFrequency, slot_of: np.ndarray, pinned: np.ndarray = NO_EXPERTS
    ) -> None:
        self.members = members
        self.slots = min(slots, len(members))
        self.policy = policy
        self.slot_of = slot_of
        self.guessed: dict[int, int] = {}
        self._expert_in = np.full(self.slots, -1, np.int32)
        self._pinned = np.zeros(len(slot_of), bool)
        self._pinned[pinned] = True
        self.loose = self.slots - len(pinned)

    def demand(self, experts: np.ndarray, keep: np.ndarray) -> list[tuple[int, int, int]]:
        """Assign a slot to each uncached expert of `experts` (distinct), without evicting any of `keep`. Returns (expert,
        slot, evicted expert or -1) for each."""
        missing = experts[self.slot_of[experts] < 0].tolist()
        if not missing:
            return []
        free = int(np.count_nonzero(self._expert_in < 0))
        victims = [-1] * min(free, len(missing))
        if len(victims) < len(missing):
            candidates = self._evictable(keep)
            coldest = np.argsort(self.policy.warmth[candidates], kind="stable")[: len(missing) - len(victims)]
            victims += candidates[coldest].tolist()
        assert len(victims) == len(missing), "more experts at once than the pool has slots"
        return [(expert, self._put(expert, victim), victim) for expert, victim in zip(missing, victims, strict=True)]

    def guess(self, expert: int, time: int, keep: np.ndarray) -> tuple[int, int] | None:
        """Assign a slot to `expert`, predicted for token `time`. Returns (slot, evicted expert or -1), or None if that would
        evict a warmer expert, one of `keep`, or another prediction for that token."""
        guesses = [e for e, meant in self.guessed.items() if meant >= time]
        victim = -1
        if (self._expert_in >= 0).all():
            candidates = self._evictable(np.append(keep, guesses).astype(int))
            if not len(candidates):
                return None
            victim = int(candidates[np.argmin(self.policy.warmth[candidates])])
            if self.policy.warmth[victim] >= self.policy.if_used(expert, time):
                return None
        slot = self._put(expert, victim)
        self.guessed[expert] = time
        return slot, victim

    def free(self, expert: int) -> None:
        """Free the slot of `expert`; its content becomes invalid."""
        self._expert_in[self.slot_of[expert]] = -1
        self.slot_of[expert] = -1
        self.guessed.pop(expert, None)

    def clear(self) -> None:
        """Free the slots of all experts that are not pinned."""
        for expert in self._evictable(NO_EXPERTS).tolist():
            self.free(expert)

    def _evictable(self, keep: np.ndarray) -> np.ndarray:
        """The cached experts that are neither pinned nor in `keep`, in the order of their slots."""
        stays = self._pinned.copy()
        stays[keep] = True
        cached = self._expert_in[self._expert_in >= 0]
        return cached[~stays[cached]]

    def _put(self, expert: int, victim: int) -> int:
        if victim < 0:
            slot = int(np.argmax(self._expert_in < 0))
        else:
            slot = int(self.slot_of[victim])
            self.slot_of[victim] = -1
            self.guessed.pop(victim, None)
        self.slot_of[expert] = slot
        self._expert_in[slot] = expert
        return slot
