"""A fast fake engine that fails in every way there is, for `harness.bench.soak`. A setting's hash decides how.

Named by `engine.module=harness.bench.faulty`. The checkpoint is any folder; `runs.log` there gets a line a run. It is read
by children: nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import Judge, Knobs, Measurement, Protocol

FATES = {  # what the engine does, and the status that its run must get
    "kill": "oom",  # the system's way when memory runs out
    "burst": "oom",
    "exception": "crash",
    "exit": "crash",
    "segfault": "crash",
    "hang": "hang",
    "silence": "timeout",  # no sign of life ever, and no end
    "wrong": "wrong",
}
SHARE = 0.04  # of all settings, each
MOVES = ("cache_gb", "evict_half_life", "read_block_kib", "read_threads", "io_mode")  # the knobs that decide
ONE_TOKEN_GB, ALL_GB, BURST_GB = 0.002, 0.08, 1.2
TOKENS, NLL = 64, 1.5


@dataclass(frozen=True)
class Footprint:
    """The engine's arithmetic: with direct reads a token's experts take three times the cache."""

    one_token_gb: float
    predicted_peak_gb: float
    architecture: str = "faulty"
    fingerprint: str = "0" * 16
    all_experts_gb: float = ALL_GB


def footprint(checkpoint: str | Path, knobs: Knobs) -> Footprint:
    """Only what it needs of the cache is foreseen; memory is not."""
    return Footprint(ONE_TOKEN_GB * (3 if knobs.io_mode == "direct" else 1), 0.02 + (knobs.cache_gb or ALL_GB))


def chance(knobs: Knobs) -> float:
    """A number in 0 .. 1 that belongs to the setting."""
    text = json.dumps([getattr(knobs, name) for name in MOVES])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def fault(knobs: Knobs) -> str | None:
    """How a setting fails, one of `FATES`; None if it does not. The reference never does."""
    which = int(chance(knobs) / SHARE)
    return [*FATES][which] if knobs.cache_gb is not None and which < len(FATES) else None


class Faulty:
    """Measures by arithmetic; the answer of a wrong one is off by a tenth of a nat."""

    def __init__(self, checkpoint: Path, knobs: Knobs) -> None:
        self.checkpoint, self.knobs, self.fault = checkpoint, knobs, fault(knobs)

    def measure(self, judge: Judge, protocol: Protocol, keep_going: Callable[[list[float]], bool]) -> Measurement:
        self._begin()
        k = self.knobs
        share = 1.0 if k.cache_gb is None else k.cache_gb / ALL_GB
        waits = (1 - share) * (1 + 0.1 * abs(math.log2(k.evict_half_life / 16))) / math.sqrt(min(k.read_threads, 4))
        ms, token_ms, early = 10 * (1 + 9 * waits), [], False
        for i in range(TOKENS):
            token_ms.append(ms * (1 + 0.05 * math.sin(i + 100 * chance(k))))
            if not keep_going(token_ms):
                early = True
                break
        wrong = 0.1 if self.fault == "wrong" else 0.0
        return Measurement(
            1e3 * len(token_ms) / sum(token_ms), 0.02 + ALL_GB * share, math.exp(NLL) if protocol.score else None,
            token_ms=tuple(token_ms), ended_early=early, decode_tokens=len(token_ms), timed_nll=NLL + wrong,
            nll=NLL if protocol.score else None, eval_fingerprint=judge.fingerprint, mode="fake",
        )  # fmt: skip

    def _begin(self) -> None:
        with open(self.checkpoint / "runs.log", "a") as f:
            f.write(f"{self.fault or 'ok'}\n")
        match self.fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                print("the disk is on fire", file=sys.stderr)
                os._exit(7)
            case "exception":
                raise IndexError("expert 384 of 384")
            case "hang":
                time.sleep(3600)
            case "burst":
                hoard = [b"\1" * 50_000_000 for _ in range(int(BURST_GB * 20))]
                time.sleep(3600 * len(hoard))


class Silent(Faulty):
    """Gives no sign of life, for it takes no `keep_going`."""

    def measure(self, judge: Judge) -> Measurement:  # type: ignore[override]
        self._begin()
        time.sleep(3600)
        raise AssertionError("unreachable")


def load(checkpoint: str | Path, knobs: Knobs) -> Faulty:
    """Nothing is loaded."""
    return (Silent if fault(knobs) == "silence" else Faulty)(Path(checkpoint), knobs)
