"""Fake engine adapter: a known response surface, faults on demand and a log of its runs.

Selected with `engine.module=fake_engine`. The checkpoint is any folder; files in it control the fake: `slow_s` (seconds per
run), `faults.json` {read_threads: crash|kill|hang|burst|exit|error|malloc|nowhere|knob}, `fingerprint` (of the model).
`runs.log` receives one line per run.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from engine import CheckpointError, Judge, KnobError, Knobs, Measurement, ReadError

ONE_TOKEN_GB, ALL_GB, RESIDENT_GB = 0.002, 0.08, 0.02


@dataclass(frozen=True)
class FakeFootprint:
    architecture: str
    fingerprint: str
    one_token_gb: float
    all_experts_gb: float
    predicted_peak_gb: float


def footprint(checkpoint: str | Path, knobs: Knobs) -> FakeFootprint:
    if not Path(checkpoint).is_dir():
        raise CheckpointError(f"checkpoint {checkpoint} is not a folder; give the folder that holds config.json")
    scale = (knobs.expert_bits or 8) / 8
    whole = ALL_GB * scale
    cached = whole if knobs.cache_gb is None else min(whole, knobs.cache_gb)
    file = Path(checkpoint) / "fingerprint"
    fingerprint = file.read_text() if file.exists() else "f" * 16
    return FakeFootprint("fake_moe", fingerprint, ONE_TOKEN_GB * scale, whole, RESIDENT_GB + cached)


class FakeEngine:
    def __init__(self, checkpoint: Path, knobs: Knobs) -> None:
        self.checkpoint, self.knobs = checkpoint, knobs

    def measure(self, judge: Judge) -> Measurement:
        with open(self.checkpoint / "runs.log", "a") as f:
            f.write(json.dumps(self.knobs.as_dict()) + "\n")
        self._fault()
        slow = self.checkpoint / "slow_s"
        time.sleep(float(slow.read_text()) if slow.exists() else 0)
        k = self.knobs
        bits = k.expert_bits or 8
        share = 1.0 if k.cache_gb is None else min(1.0, k.cache_gb / (ALL_GB * bits / 8))
        miss = (1 - share) * bits / 8
        waits = miss * (1 + 0.1 * abs(math.log2(k.evict_half_life / 16))) / math.sqrt(min(k.read_threads, 4))
        perplexity = 4.0 + 12 * 2.0**-bits
        if k.cold_bits is not None:
            perplexity += (1 - k.resolved_hot_share) * 20 * 2.0**-k.cold_bits
        return Measurement(
            decode_tok_s=100 / (1 + 9 * waits), prefill_tok_s=500.0, decode_tokens=100,
            peak_memory_gb=RESIDENT_GB + (ALL_GB * bits / 8) * share, mlx_peak_gb=0.01, perplexity=perplexity,
            perplexity_se=0.1, nll=math.log(perplexity), scored_tokens=400, hit_rate=None if k.cache_gb is None else share,
            bytes_per_token=1e6 * miss, hits=10, misses=10, reads=10, bytes_read=1000, io_ms=1.0, sync_ms=0.1,
            prefetch_issued=0, prefetch_useful=0, prefetch_recall=None, prefetch_exact_set=None,
            prefetch_precision=None, prefetch_coverage=None, prefetch_hidden_ms=0.0, prefetch_wasted_bytes=0,
            passes_per_window=None, rejected_layers=0, window_prediction_recall=None, swapped=0,
            dropped=0, dropped_share=None, slots=10, cached_share=share, average_bits=bits, plan_fingerprint=None,
            eval_fingerprint=judge.fingerprint, mode="fake",
            decode_ms_p50=1.0, decode_ms_p95=2.0, io_ms_per_token=0.01, sync_ms_per_token=0.001,
            compute_ms_per_token=0.9, disk_bytes_read=1000, page_cache_share=0.0, thermal_state=None, temperature_c=None,
            power_source=None, memory_pressure=None, swap_used_bytes=None, throttle_events=None, swap_in_bytes=None,
            swap_out_bytes=None,
        )  # fmt: skip

    def _fault(self) -> None:
        path = self.checkpoint / "faults.json"
        kind = json.loads(path.read_text()).get(str(self.knobs.read_threads)) if path.exists() else None
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "hang":
            time.sleep(3600)
        elif kind == "burst":
            hoard = [bytearray(os.urandom(1 << 20) * 16) for _ in range(64)]
            time.sleep(3600 if hoard else 0)
        elif kind == "exit":
            print("the disk is on fire", file=sys.stderr)
            os._exit(7)
        elif kind == "malloc":
            raise RuntimeError("[malloc] Unable to allocate 9000000000 bytes.")
        elif kind == "error":
            raise ReadError("shard 3 cannot be read; copy it again")
        elif kind == "nowhere":
            (self.checkpoint / "nowhere" / "shard").read_bytes()
        elif kind == "knob":
            raise KnobError("expert_bits=3: 40 columns are no multiple of 32; unset it")


def load(checkpoint: str | Path, knobs: Knobs) -> FakeEngine:
    return FakeEngine(Path(checkpoint), knobs)
