"""Caller: whether mlx-lm's generation code drops the logits of the pass that it calls.

mlx-lm prefills a prompt with calls whose results it ignores (`self.model(tokens, cache=cache)` as a statement). Neither the
head nor the last layer's experts are needed then. The instruction that follows the call shows this: the interpreter pops the
result off its stack. Only frames of mlx-lm's generation module are examined, where no C function that could keep the result
is in between. Any other caller counts as one that uses the logits.
"""

from __future__ import annotations

import bisect
import dis
import functools
from types import CodeType, FrameType

GENERATION = "mlx_lm.generate"


def drops_result(frame: FrameType | None) -> bool:
    """Return whether `frame`, or the frames that it returns the result to, drop the result of the call in progress."""
    while frame is not None and frame.f_globals.get("__name__") == GENERATION:
        following = _following(frame.f_code, frame.f_lasti)
        if following != "RETURN_VALUE":
            return following == "POP_TOP"
        frame = frame.f_back
    return False


def _following(code: CodeType, offset: int) -> str:
    """Return the name of the instruction after the one at `offset`, or after the inline cache there."""
    offsets, names = _instructions(code)
    place = bisect.bisect_right(offsets, offset)
    return names[place] if place < len(names) else ""


@functools.cache
def _instructions(code: CodeType) -> tuple[list[int], list[str]]:
    instructions = list(dis.get_instructions(code))
    return [i.offset for i in instructions], [i.opname for i in instructions]
