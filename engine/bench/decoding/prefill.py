"""bench prefill: time to first token by prompt and prefill chunk, beside the ceiling of the bytes that must be read.

The prompts are the evaluation texts, one after the other. For a model of random weights, whose own routing would collapse,
they are random tokens, and the routing is forced from a recorded trace. The clock runs from the first token of a prompt to
the logits after its last one, as in `generate`. Every turn begins with what the turn before left in the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from engine.checkpoint.checkpoint import Checkpoint
from engine.engine import Engine, load
from engine.errors import HeadraceError
from engine.knobs import CACHE_DEPENDENT, GB, LOSSY, Knobs
from engine.measure.judge import Judge
from engine.plan.footprint import weights_of
from engine.routing.read import Trace
from engine.stats import HITS, MISSES

from ..contender import Contender, in_turns, spread
from ..machine.plain_reads import plain_gbps
from .forced_routing import ForcedRouting
from .prefill_table import print_table


@dataclass
class Prefiller:
    """An engine with one prompt length and one chunk; `turn` prefills a prompt once and keeps what it took.

    `must_read`, `read` (bytes) and `pass_memory` (bytes besides the weights) have one entry a turn.
    """

    engine: Engine
    cached: float | None  # share of the experts; None: the resident model
    prompt: list[int]
    chunk: int
    forced: ForcedRouting | None
    must_read: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    pass_memory: list[int] = field(default_factory=list)

    def turn(self) -> float:
        """Prefill the prompt; returns the seconds to the first token."""
        engine, stats = self.engine, self.engine.stats
        engine.forward.chunk = self.chunk
        engine.forward.begin()
        cache = make_prompt_cache(engine.model)
        slots = np.array([sum(pool.slots for pool in layer.cache.pools) for layer in engine.layers], np.int64)
        sizes = np.array([layer.expert_bytes for layer in engine.checkpoint.layers][: len(slots)], np.int64)
        must, read, active = 0, stats.bytes_read, mx.get_active_memory()
        mx.reset_peak_memory()
        begin = time.perf_counter()
        for first in (*range(0, len(self.prompt) - 1, self.chunk), len(self.prompt) - 1):
            before = stats.layers[:, [HITS, MISSES]].sum(axis=1)
            self._compute(first, cache)
            needed = stats.layers[:, [HITS, MISSES]].sum(axis=1) - before
            must += int((np.maximum(0, needed - slots) * sizes).sum())
        seconds = time.perf_counter() - begin
        self.must_read.append(must)
        self.read.append(stats.bytes_read - read)
        self.pass_memory.append(mx.get_peak_memory() - active)
        return seconds

    def _compute(self, first: int, cache: list[Any]) -> None:
        """Compute the chunk that begins at token `first`, or the last token, whose logits are needed."""
        end = len(self.prompt) - 1
        ids = self.prompt[first : min(first + self.chunk, end)] if first < end else self.prompt[end:]
        if self.forced is not None:
            self.forced.at(first)
        if first < end:
            self.engine.forward.prefill_cache(ids, cache)
        else:
            self.engine.forward.logits(ids, cache)


def bench_prefill(
    model: Path,
    knobs: Knobs,
    *,
    judge: Judge | None,
    trace: Trace | None,
    rounds: int,
    prompts: list[int],
    chunks: list[int],
    cached: list[float],
    resident: bool,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Prefill prompts of each length with every cached share and chunk, in turns with the resident model.

    A chunk of 0 is what `prefill_chunk=auto` stands for. `must_read` counts each expert that a chunk uses once, minus the
    slots of its layer. The serial ceiling is must_read / bandwidth + compute, the overlapped one the larger of the two.
    Bandwidth is that of plain large reads of the same files (or `ssd_gbps`), and compute the resident model's time with the
    same chunk, both in the same round; without the resident model, compute is 0. Raises `HeadraceError` for a prompt that
    exceeds the model's context.
    """
    source = Checkpoint.open(model, trust_code=trust_code)
    longest = source.context_limit
    if longest is not None and max(prompts) > longest:
        raise HeadraceError(
            f"--prompts {max(prompts)} is above the {longest} tokens of {source.name}'s context; give shorter ones"
        )
    sizes = weights_of(source, knobs)
    lossy = {name: getattr(knobs, name) for name in LOSSY if name not in CACHE_DEPENDENT}
    settings: list[tuple[float | None, Knobs]] = [(None, Knobs(**lossy))] if resident else []
    for share in sorted(cached, reverse=True):
        cache_gb = max(sizes.one_token_gb, share * sizes.all_experts_gb)
        settings.append((share, dataclasses.replace(knobs, cache_gb=cache_gb)))
    with contextlib.ExitStack() as stack:
        engines = [(share, stack.enter_context(load(model, given, trust_code=trust_code))) for share, given in settings]
        auto = engines[-1][1].chunk
        lengths = list(dict.fromkeys(chunk or auto.tokens for chunk in chunks))
        text = _tokens(engines[0][1], judge, max(prompts))
        forced = [None if trace is None else ForcedRouting(engine, trace, None) for _, engine in engines]
        prefillers = [
            Prefiller(engine, share, text[:tokens], chunk, routing)
            for tokens in prompts
            for (share, engine), routing in zip(engines, forced, strict=True)
            for chunk in lengths
        ]
        for one in prefillers[:: len(lengths)]:  # touches memory and compiles kernels before the clock starts
            one.turn()
        contenders = [Contender(f"{len(p.prompt)} {p.cached} {p.chunk}", p.turn) for p in prefillers]
        plain: list[float] = []
        in_turns(contenders, rounds, lambda: plain.append(knobs.ssd_gbps or plain_gbps(source.files, knobs)))
        computes = {
            (len(p.prompt), p.chunk): np.array(c.figures)
            for p, c in zip(prefillers, contenders, strict=True)
            if p.cached is None
        }
        firsts = {(len(p.prompt), p.cached): c for p, c in reversed([*zip(prefillers, contenders, strict=True)])}
        result = {
            "bench": "prefill", "architecture": source.architecture, "layers": len(source.layers),
            "experts": source.layers[0].experts, "top_k": source.top_k, "expert_bits": source.expert_bits, "rounds": rounds,
            "mode": engines[-1][1].mode, "routing": "forced from a trace" if trace else "the model's own",
            "eval_fingerprint": judge.fingerprint if judge else None, "io_gbps": spread(plain),
            "auto_chunk": auto.tokens, "auto_reason": auto.why, "knobs": knobs.as_dict(),
            "rows": [
                _row(p, c, computes.get((len(p.prompt), p.chunk)), firsts[len(p.prompt), p.cached], np.array(plain), rounds)
                for p, c in zip(prefillers, contenders, strict=True)
            ],
        }  # fmt: skip
    print_table(result)
    return result


def _tokens(engine: Engine, judge: Judge | None, count: int) -> list[int]:
    """`count` tokens: of the evaluation texts, repeated as often as needed, or random ones."""
    if judge is None:
        return list(np.random.default_rng(0).integers(0, engine.checkpoint.built.vocabulary, count).tolist())
    texts = [token for text in judge.texts for token in engine.encode(text.prompt + text.continuation)]
    return list(itertools.islice(itertools.cycle(texts), count))


def _row(
    prefiller: Prefiller, contender: Contender, compute: np.ndarray | None, first: Contender, plain: np.ndarray, rounds: int
) -> dict[str, Any]:
    seconds = np.array(contender.figures)
    must = np.array(prefiller.must_read[-rounds:])
    io = must / GB / plain
    both = np.zeros(rounds) if compute is None else compute
    streamed = prefiller.cached is not None
    return {
        "prompt": len(prefiller.prompt), "cached": prefiller.cached, "chunk": prefiller.chunk,
        "cache_gb": prefiller.engine.knobs.cache_gb, "ttft_s": spread(seconds),
        "prefill_tok_s": spread(len(prefiller.prompt) / seconds),
        "speed_over_first_chunk": spread(np.array(first.figures) / seconds),
        "read_gb": float(np.median(prefiller.read[-rounds:])) / GB, "must_read_gb": float(np.median(must)) / GB,
        "pass_gb": max(prefiller.pass_memory) / GB, "io_s": float(np.median(io)),
        "compute_s": None if compute is None else float(np.median(compute)),
        "share_of_serial": spread((io + both) / seconds) if streamed else None,
        "share_of_overlapped": spread(np.maximum(io, both) / seconds) if streamed else None,
        "share_of_resident": None if compute is None else spread(both / seconds),
    }  # fmt: skip
