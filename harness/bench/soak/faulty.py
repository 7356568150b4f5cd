"""Faulty engine: fast, fake, and with one fault per setting, chosen by the setting's hash.

A study uses it with `engine.module=harness.bench.soak.faulty`. The checkpoint is any folder, whose `runs.log` gets a line
per run. Worker processes import this module, so it imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import Judge, Knobs, Measurement, Protocol
from engine.system.strict_json import to_json

FATES = {  # fault of the engine -> status that its run must get
    "kill": "oom",  # as the system does when memory runs out
    "burst": "oom",
    "exception": "crash",
    "exit": "crash",
    "segfault": "crash",
    "hang": "hang",
    "silence": "timeout",  # no sign of life and no end
    "wrong": "wrong",
}
SHARE = 0.04  # share of all settings, per fault
MOVES = ("cache_gb", "evict_half_life", "read_block_kib", "read_threads", "io_mode")  # knobs in the hash
ONE_TOKEN_GB, ALL_GB, BURST_GB = 0.002, 0.08, 1.2
TOKENS, NLL = 64, 1.5


@dataclass(frozen=True)
class Footprint:
    """The predicted memory; with direct reads one token's experts need three times the cache."""

    one_token_gb: float
    predicted_peak_gb: float
    architecture: str = "faulty"
    fingerprint: str = "0" * 16
    all_experts_gb: float = ALL_GB


def footprint(checkpoint: str | Path, knobs: Knobs) -> Footprint:
    """The footprint of a setting. It predicts the cache but not a burst of memory."""
    return Footprint(ONE_TOKEN_GB * (3 if knobs.io_mode == "direct" else 1), 0.02 + (knobs.cache_gb or ALL_GB))


def chance(knobs: Knobs) -> float:
    """A number in 0 .. 1, from the setting's hash."""
    text = to_json([getattr(knobs, name) for name in MOVES])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def fault(knobs: Knobs) -> str | None:
    """The fault of a setting, one of `FATES`, or None. The reference has none."""
    which = int(chance(knobs) / SHARE)
    return [*FATES][which] if knobs.cache_gb is not None and which < len(FATES) else None


class Faulty:
    """Computes its figures. With the fault `wrong`, its likelihood is off by 0.1 nat."""

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
    """Gives no sign of life, because its `measure` has no `keep_going`."""

    def measure(self, judge: Judge) -> Measurement:  # type: ignore[override]
        self._begin()
        time.sleep(3600)
        raise AssertionError("unreachable")


def load(checkpoint: str | Path, knobs: Knobs) -> Faulty:
    """The engine of a setting; it loads nothing."""
    return (Silent if fault(knobs) == "silence" else Faulty)(Path(checkpoint), knobs)
