"""Start: brings the experts' cache to the protocol's state before the clock starts for a text.

- `prefilled`: as the prompt leaves it, after whatever came before: how a user's first tokens are served.
- `steady`: as a long generation that ends with the prompt would leave it. The cache is emptied, then the choices for all
  prompts, this one last, go through it token by token, as if each had been generated. The continuations' own choices would
  be the wrong ones: the timed tokens would then find what they have used a moment ago.
- `cold`: empty; only layers that hold every expert, and pinned experts, are there.

`steady` and `cold` do not depend on what was computed before, so they are the same after a prompt that was computed and
after one that was restored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.errors import HeadraceError
from engine.measure.protocol import COLD, PREFILLED, STEADY

from .given import Streamed, after_passes, dry_prefill, empty


class Start:
    """The start of each text of one measurement.

    `chunk`: tokens of a prompt in one pass. `routing` returns the choices for every prompt, in the order of the texts, each
    int [tokens, layers, top-k]; it is called once, for `steady` only. What is read to reach a state is added to the engine's
    `filled`. Raises `HeadraceError` for `steady` with knobs whose choices depend on the cache.
    """

    def __init__(
        self, engine: Streamed, state: str, chunk: int, routing: Callable[[], Sequence[np.ndarray]] = tuple
    ) -> None:
        if state == STEADY and engine.depends_on_cache:
            names = " and ".join(engine.depends_on_cache)
            raise HeadraceError(
                f"state={STEADY} is not possible with {names}, whose choices depend on what is cached; use {PREFILLED}"
            )
        self._engine, self._state, self._chunk, self._routing = engine, state, chunk, routing
        self._prompts: Sequence[np.ndarray] | None = None

    def after_prompt(self, text: int, restored: np.ndarray | None = None) -> None:
        """Reach the state after the prompt of a text, which was computed, or restored with the choices `restored`."""
        if self._state == PREFILLED and restored is not None:
            self._engine.filled += dry_prefill(self._engine, restored, self._chunk)
        elif self._state == COLD:
            empty(self._engine)
        elif self._state == STEADY:
            if self._prompts is None:
                self._prompts = self._routing()
            empty(self._engine)
            self._engine.filled += after_passes(self._engine, [*self._prompts[text + 1 :], *self._prompts[: text + 1]], 1)
