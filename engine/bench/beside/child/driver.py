"""Driver: answers the requests of `bench beside` in a process of one checkout.

A request and an answer are one line of JSON each. The engine stays loaded between turns, since reading its weights takes
longer than a turn.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import revision
from .bookkeeping import Bookkeeping
from .samples import Samples

WAITS = ("io_ms", "sync_ms", "quantize_ms")
COUNTS = ("hits", "misses", "reads", "bytes_read", "passes")


class Driver:
    """One engine at a time, and what its turns measure."""

    def __init__(self) -> None:
        self.engine: Any = None
        self._forced: Any = None
        self._judge: Any = None
        self._bookkeeping: Bookkeeping | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the request `do` with its other values as arguments."""
        requests: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self.open, "turn": self.turn, "bookkeeping": self.bookkeeping, "close": self.close
        }  # fmt: skip
        return requests[request.pop("do")](**request)

    def open(
        self, model: str, knobs: dict[str, Any], *, texts: str = "", trace: str = "", recall: list[float] | None = None,
        misses: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Load an engine in the place of the one before: for evaluation texts, a trace, or the bookkeeping of `misses`."""
        self.close()
        self.engine = revision.load(model, knobs)
        if misses is not None:
            self._bookkeeping = Bookkeeping(self.engine, misses)
        elif trace:
            self._forced = revision.forced_routing(self.engine, trace, recall)
        else:
            self._judge = import_module("engine").Judge.load(Path(texts))
        return {"mode": self.engine.mode}

    def turn(self, tokens: int, samples: bool = False) -> dict[str, Any]:
        """Decode; speed, milliseconds and counts per token. `samples`: also the shares of the time by place.

        `cpu_ms` is the process's CPU time, with that of warm-up and prompts. It hardly depends on other load.
        """
        taken, cpu = Samples(Path.cwd()), time.process_time()
        with taken if samples else contextlib.nullcontext():
            seconds, stats = self._forced.decode(tokens) if self._forced is not None else self._measure(tokens)
        cpu_ms = (time.process_time() - cpu) / stats.tokens * 1e3
        per_token = {name: getattr(stats, name) / stats.tokens for name in (*WAITS, *COUNTS)}
        speed = {"tok_s": stats.tokens / seconds, "tokens": stats.tokens, "cpu_ms": cpu_ms}
        return {**speed, **per_token, "samples": taken.shares}

    def bookkeeping(self, tokens: int) -> dict[str, Any]:
        """Microseconds of the bookkeeping per layer and token."""
        assert self._bookkeeping is not None
        us, misses = self._bookkeeping.turn(tokens)
        return {
            "us_per_layer": us,
            "misses": misses,
            "layers": len(self._bookkeeping.layers),
            "top_k": self._bookkeeping.top_k,
        }

    def close(self) -> dict[str, Any]:
        """Close the engine and free its memory."""
        if self.engine is not None:
            self.engine.close()
        self.engine = self._forced = self._judge = self._bookkeeping = None
        gc.collect()
        mx.clear_cache()
        return {}

    def _measure(self, tokens: int) -> tuple[float, Any]:
        engine, most = self.engine, self.engine.continuation_tokens(self._judge)
        protocol = import_module("engine").Protocol(timed_tokens=min(tokens, most), score=False)
        tok_s = engine.measure(self._judge, protocol).decode_tok_s
        return engine.decoded.tokens / tok_s, engine.decoded


def main() -> None:
    """Answer the requests on standard input until it ends; all else that is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    driver = Driver()
    print(json.dumps({"engine": import_module("engine").__file__}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = driver.answer(json.loads(line))
        except Exception as e:
            place = traceback.extract_tb(e.__traceback__)[-1]
            answer = {"error": f"{type(e).__name__}: {e} ({place.filename}:{place.lineno})"}
        print(json.dumps(answer), file=answers, flush=True)
    driver.close()
