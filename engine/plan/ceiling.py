"""Ceiling: the decode speed that a setting cannot exceed, by arithmetic, because its reads are limited to a bandwidth.

The tokens are teacher-forced, so all lossless settings have the same routing. It is recorded once in a child process
and stored in the user's cache folder. While the clock runs, a setting reads at least the misses of Belady's optimum with its
slots, bank by bank, even if each text's prefill had left the best experts in the cache; and an expert takes at least its
stored bytes. A disk limited to `ssd_gbps` serves one read after the other, starting when it is requested, without credit for
earlier idle time. Reads requested before a text's first decoded token are already in a slot and count as cached. Computing
and waiting count as nothing, so the bound is close only where reading takes most of a token.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.known import opened
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.errors import HeadraceError, first_line
from engine.knobs import CACHE_DEPENDENT, GB, Knobs
from engine.measure.judge import Judge
from engine.measure.protocol import Protocol
from engine.model.backend import compute_dtype
from engine.routing.belady import belady_misses
from engine.routing.profile import routing_profile
from engine.system.strict_json import to_json
from engine.system.user_cache import cached_file, compute_apart

from .banks import plan_banks
from .bits import needs_routing
from .footprint import chunk_for

FORMAT = 2  # raised when the file or its content changes meaning
MARGIN = 0.1  # share of misses by which other widths may change the routing; kimi_mini has at most 0.04 fewer
RESIDENT_BITS = 4  # below this width kimi_mini's routing is very different, with up to 0.7 fewer misses
PAUSE_S = 1e-3  # upper bound of the untimed pause between two tokens, in which prefetch reads may continue


def ceiling_tok_s(
    checkpoint: str | Path | Checkpoint,
    knobs: Knobs,
    judge: Judge,
    protocol: Protocol | None = None,
    *,
    trust_code: bool = False,
) -> float | None:
    """Return an upper bound of `decode_tok_s` of `Engine.measure(judge, protocol)` with these knobs, tokens/s.

    The bound holds unless the measurement ends early. It is None if no bandwidth limit is set, nothing has to be read, or a
    knob changes which experts are chosen or read (`top_k`, knobs that depend on the cache, `resident_bits` below 4).

    The first call for some texts and number of timed tokens runs a pass over them in a child process,
    with `trust_code` as in `load`. Raises `KnobError`,
    `CheckpointError` and `JudgeError` as `load` does, and `HeadraceError` if that pass fails.
    """
    reroutes = {*CACHE_DEPENDENT, "top_k"}
    if knobs.cache_gb is None or knobs.ssd_gbps is None or not reroutes.isdisjoint(knobs.lossy):
        return None
    if knobs.resident_bits is not None and knobs.resident_bits < RESIDENT_BITS:
        return None
    source = checkpoint if isinstance(checkpoint, Checkpoint) else opened(checkpoint, trust_code=trust_code)
    if read_rehearsal(source.path) is not None:  # its routing is not that of the texts
        return None
    profile = routing_profile(source) if needs_routing(knobs) else None
    banks = plan_banks(source, knobs, profile=profile)
    routing = _routing(routing_file(source, judge, protocol or Protocol()), source, judge, protocol or Protocol())
    nbytes: float = sum(
        routing.misses(bank.layer, tuple(bank.members.tolist()), bank.slots) * bank.form.expert_bytes for bank in banks
    )
    chunks = {min(tokens, routing.longest_prompt) for tokens in (routing.chunk, chunk_for(source, knobs).tokens)}
    if knobs.lossy or len(chunks) > 1:
        nbytes *= 1 - MARGIN
    seconds = nbytes / (knobs.ssd_gbps * GB)
    if knobs.prefetch != "off" or knobs.sync_window != 1:
        seconds -= routing.tokens * PAUSE_S
    return routing.tokens / seconds if seconds > 0 else None


class Routing:
    """The experts of every timed token, int [tokens, layers, top_k]; `texts` is the number of these tokens per text. `chunk`
    is the prefill chunk of the run that recorded them, `longest_prompt` a number of tokens."""

    def __init__(self, experts: np.ndarray, texts: np.ndarray, chunk: int, longest_prompt: int) -> None:
        self.chunk, self.longest_prompt = chunk, longest_prompt
        self.tokens = len(experts)
        self._experts = experts
        self._ends = np.cumsum(texts)[:-1]
        self.misses = functools.cache(self._misses)

    def _misses(self, layer: int, members: tuple[int, ...], slots: int) -> int:
        """Return the fewest misses, over all texts, of a bank with these experts of a layer and `slots` slots."""
        if slots >= len(members):
            return 0
        chosen = self._experts[:, layer]
        own = np.isin(chosen, members)
        return sum(
            sum(belady_misses([ids[its].tolist() for ids, its in zip(*part, strict=True)], slots, warm=True))
            for part in zip(np.split(chosen, self._ends), np.split(own, self._ends), strict=True)
        )


def routing_file(checkpoint: Checkpoint, judge: Judge, protocol: Protocol) -> Path:
    """Return the path in the cache folder for the routing of this checkpoint on the timed tokens."""
    identity = [FORMAT, judge.fingerprint, protocol.timed_tokens, f"{compute_dtype()} {mx.default_device()}",
                version("mlx"), version("mlx-lm")]  # fmt: skip
    digest = hashlib.sha256(to_json(identity).encode()).hexdigest()[:16]
    return cached_file(f"judged-{checkpoint.fingerprint}-{digest}.npz")


def routing_request(checkpoint: Checkpoint, judge: Judge, protocol: Protocol) -> str:
    """Return the request of the job `routing` of `engine.cli.offline`, as JSON."""
    return to_json({
        "checkpoint": str(checkpoint.path), "trust_code": checkpoint.trust_code, "texts": judge.as_lists(),
        "timed_tokens": protocol.timed_tokens,
    })  # fmt: skip


_read: dict[Path, Routing] = {}


def _routing(file: Path, checkpoint: Checkpoint, judge: Judge, protocol: Protocol) -> Routing:
    """Return the routing in `file`; it is recorded now if the file does not exist."""
    if file not in _read:
        if not file.exists():
            request = routing_request(checkpoint, judge, protocol)
            compute_apart("the routing that a ceiling needs", "engine.cli.offline", "routing", given=request)
        try:
            with np.load(file) as arrays:
                _read[file] = Routing(
                    arrays["experts"], arrays["texts"], int(arrays["chunk"]), int(arrays["longest_prompt"])
                )
        except Exception as e:  # damaged bytes raise almost anything in numpy and zipfile
            raise HeadraceError(f"the recorded routing {file} is damaged ({first_line(e)}); remove it") from e
    return _read[file]
