"""Engine: a model with its routed experts streamed, and what can be done with it.

mlx-lm opens the model lazily and never reads an expert's weights. A `StreamedLayer` replaces each of its switches; all other
weights are read and stay in memory. With `Knobs()` no module is replaced. The model is then mlx-lm's own, and every lossless
setting must equal it to the last bit. (On the CPU its matrices have another memory layout, with bit-identical results.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from engine.cache_state.enlarge import scoring_with
from engine.cache_state.fill import Filled
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.config import not_finite_keys
from engine.checkpoint.known import opened
from engine.checkpoint.places.find import find_checkpoint
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.errors import HeadraceError
from engine.generation.context import Context
from engine.generation.generation import Generation, never
from engine.generation.sampling import Sampling
from engine.knobs import CACHE_DEPENDENT, GB, Knobs
from engine.measure.judge import Judge
from engine.measure.measurement import Measurement
from engine.measure.mode import mode_of
from engine.measure.not_finite import LogitsError
from engine.measure.protocol import PREFILLED, REAL, Protocol
from engine.measure.spans import FILL, Spans
from engine.measure.timed_pass import KeepGoing, KeepScoring, Prompt, Scored, timed_pass
from engine.model.buffer_cache import buffer_cache_bytes, limit_buffer_cache, never_wire
from engine.model.environment.backend_knobs import refuse_without_effect
from engine.model.keep_warm import KeepWarm
from engine.model.open import open_model
from engine.model.resident import read_resident
from engine.plan.banks import needs_profile, plan_banks, plan_bits
from engine.plan.bits import BitsPlan
from engine.plan.chunk import Chunk
from engine.plan.footprint import chunk_for, refuse_too_large
from engine.prompt_cache.kept import Keeping, timed_texts
from engine.routing.forced import ForcedRouting, force, refuse_trace, rehearsed
from engine.routing.profile import routing_profile
from engine.routing.traces.ahead import Ahead
from engine.stats import Stats
from engine.streaming.decode_state import DecodeState
from engine.streaming.forward import Forward
from engine.streaming.install import decode_state_for, filling, install_gates, install_layers, trace_writer
from engine.streaming.layer import StreamedLayer
from engine.streaming.passes import Passes
from engine.streaming.window.speculate import SpeculativeWindows
from engine.system.meters.translated import refuse_translated
from engine.system.page_cache import cached_share, weight_files
from engine.tokenizer.open import open_tokenizer


def load(checkpoint: str | Path, knobs: Knobs | None = None, *, trust_code: bool = False, tokenizer: Any = None) -> Engine:
    """Open a checkpoint, a folder or ORG/NAME of a downloaded model, with the given knobs.

    trust_code: run the checkpoint's own code if its tokenizer needs it. tokenizer: the one of `open_tokenizer`, if it is
    open already; otherwise it is opened on first use. Raises `CheckpointError` if the checkpoint cannot be streamed,
    `KnobError` if a knob does not fit this model.
    """
    knobs = knobs or Knobs()
    refuse_translated()
    refuse_without_effect(knobs)
    checkpoint = find_checkpoint(checkpoint)
    cached = cached_share(weight_files(checkpoint))  # before the headers are read
    source = opened(checkpoint, trust_code=trust_code).with_top_k(knobs.top_k)
    # mlx-lm cannot read a store's experts, so they are streamed even when all of them stay. plan_banks refuses verify_reads
    # for a checkpoint without checksums.
    streamed = knobs.streams or knobs.verify_reads or source.levels is not None
    bits = plan_bits(source, knobs)
    plans = plan_banks(source, knobs, bits) if streamed else []
    refuse_too_large(source, knobs)
    chunk = chunk_for(source, knobs)
    if streamed and needs_profile(knobs):
        profile = routing_profile(source)
        bits = plan_bits(source, knobs, profile)
        plans = plan_banks(source, knobs, bits, profile)
    limit_buffer_cache()
    never_wire()
    mx.reset_peak_memory()
    model = open_model(source)
    state = decode_state_for(source, knobs) if streamed else None
    try:
        layers, windows = install_layers(model, source, knobs, plans, state) if state is not None else ([], None)
        with filling(layers, plans):
            read_resident(model, source, knobs.resident_bits)
        if state is not None:
            install_gates(model, source, knobs, layers)
            state.stats.reset()
    except BaseException:
        if state is not None:
            state.reader.close()
        raise
    engine = Engine(source, knobs, bits, chunk, model, layers, state, windows, cached)
    if (rehearsal := read_rehearsal(source.path)) is not None:
        force(engine, rehearsed(rehearsal, source)[0], rehearsal.window_recall)
    if tokenizer is not None:
        engine.tokenizer = tokenizer
    return engine


def _facts(engine: Engine, measured: Measurement, judge: Judge, slots: int) -> dict[str, Any]:
    """The figures of a measurement that only its engine knows; `slots` are those of the timed part."""
    return {
        "hit_rate": None if engine.knobs.cache_gb is None else measured.hit_rate,
        "fill_bytes": engine.filled.bytes_read if engine.layers else None,
        "page_cached_before": engine.page_cached_before,
        "slots": slots,
        "cached_share": slots / engine.checkpoint.experts,
        "prefill_chunk_used": engine.chunk.tokens,
        "mlx_cache_limit_gb": buffer_cache_bytes() / GB,
        "average_bits": engine.bits.average_bits,
        "plan_fingerprint": engine.bits.fingerprint,
        "eval_fingerprint": judge.fingerprint,
        "mode": engine.mode,
    }


class Engine:
    """A loaded model. Use it as a context manager, or `close()` it, to end its reader threads.

    `model` is mlx-lm's module. mlx-lm's generation code can call it, and every call is counted in `stats`.
    `chunk` is the prefill chunk in use. `state` is the streamed layers' shared state, None while every expert is resident.
    `page_cached_before` is the share of the checkpoint's files that were in the page cache before loading. `decoded` holds
    the counters of the timed tokens of the last `measure`. `spans` collects where the time of a `measure` goes.
    """

    def __init__(
        self, checkpoint: Checkpoint, knobs: Knobs, bits: BitsPlan, chunk: Chunk, model: nn.Module,
        layers: list[StreamedLayer], state: DecodeState | None, windows: SpeculativeWindows | None,
        page_cached_before: float | None = None,
    ) -> None:  # fmt: skip
        self.checkpoint = checkpoint
        self.knobs = knobs
        self.bits = bits
        self.chunk = chunk
        self.model = model
        self.layers = layers
        self.state = state
        self.windows = windows
        self.page_cached_before = page_cached_before
        self.decoded, self.spans, self.filled = Stats(), Spans(), Filled()
        self.forced: ForcedRouting | None = None
        self.enlarged = False  # the cache is no longer that of the knobs
        self.passes = Passes(model, layers, state, reset_first=bool(self.depends_on_cache))
        stated = not_finite_keys(checkpoint.config)
        self.forward = Forward(
            model, self.passes, knobs, chunk=chunk.tokens, name=checkpoint.name, in_order=windows is None, stated=stated
        )
        self.stats = self.passes.stats
        self.warm = KeepWarm(mx.default_device()) if knobs.gpu_keep_warm else None
        if self.warm is not None:
            self.passes.before_token = self.warm.touch

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and close the reader's files. The engine cannot be used afterwards."""
        if self.warm is not None:
            self.warm.close()
        if self.state is not None:
            self.state.reader.close()

    @cached_property
    def tokenizer(self) -> Any:
        """mlx-lm's tokenizer of the checkpoint. Generation ends at each end-of-text token that the checkpoint names."""
        return open_tokenizer(self.checkpoint.path, trust_code=self.checkpoint.trust_code).tokenizer

    @property
    def context_limit(self) -> int | None:
        """The model's longest context in tokens; None if its configuration names none."""
        return self.checkpoint.context_limit

    @property
    def depends_on_cache(self) -> list[str]:
        """The knobs that are set and make the logits depend on the experts cached at the moment, hence on earlier texts."""
        return [name for name in self.knobs.lossy if name in CACHE_DEPENDENT]

    @property
    def uses(self) -> np.ndarray:
        """Count of each routed expert's uses since loading: int64 [layers, experts]. Streamed engines only."""
        assert self.state is not None
        return self.state.uses

    @property
    def slots(self) -> int:
        """The number of experts that fit into the cache, over all layers."""
        return sum(pool.slots for layer in self.layers for pool in layer.cache.pools) or self.checkpoint.experts

    @property
    def mode(self) -> str:
        """The path that runs, e.g. `streamed float32 cpu buffered`; part of every row of results."""
        return mode_of(self.knobs, self.checkpoint)

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Return the token ids of a text; with `start`, the tokenizer's start-of-document tokens come first."""
        return list(self.tokenizer.encode(text, add_special_tokens=start))

    def logits(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return next-token logits after each token, teacher-forced from an empty context: float32 [tokens, vocab].

        Raises `HeadraceError` for an empty sequence or an id outside the vocabulary.
        """
        ids = [int(i) for i in token_ids]
        vocab = self.checkpoint.built.vocabulary
        wrong = next((i for i in ids if i < 0 or (vocab and i >= vocab)), None)
        if not ids or wrong is not None:
            what = "no tokens were given" if not ids else f"token id {wrong} is outside 0 .. {vocab - 1}"
            raise HeadraceError(f"logits: {what}; encode the text with this model's tokenizer")
        self.forward.begin()
        return np.concatenate([np.array(part) for part in self.forward.prefill(ids, make_prompt_cache(self.model))])

    def generate(self, prompt: str, max_tokens: int = 64, *, temperature: float = 0.0, seed: int = 0) -> Iterator[str]:
        """Continue `prompt`, yielding text piece by piece until the end-of-text token or `max_tokens`. Greedy at 0."""
        yield from self.generation(self.encode(prompt), Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens))

    def generation(self, prompt: Sequence[int], sampling: Sampling, *, stopped: Callable[[], bool] = never) -> Generation:
        """Return the text that continues the token ids `prompt`, to iterate over, with its figures.

        The random numbers restart at the sampling's seed. Raises `HeadraceError` for an empty or too long prompt.
        """
        generation = Generation(
            Context(self.forward), self.tokenizer, prompt, sampling, limit=self.context_limit, stopped=stopped
        )
        self.forward.begin()
        mx.random.seed(sampling.seed)
        return generation

    def measure(
        self, judge: Judge, protocol: Protocol | None = None, keep_going: KeepGoing = None, keep_scoring: KeepScoring = None,
        keeping: Keeping | None = None, scoring_limit_gb: float | None = None,
    ) -> Measurement:  # fmt: skip
        """Decode the evaluation texts against the clock under a protocol (see `engine.measure.timed_pass`).

        `keep_going` is called after each timed token with the milliseconds of all timed tokens so far; the measurement ends
        early when it returns False, as scoring does with `keep_scoring`. `keeping`: where prompts are kept for
        `prefill=restored`; the user's cache folder if unset. `scoring_limit_gb`: memory that the process may take to score
        with a larger cache (`engine.cache_state.enlarge`). perplexity = exp(mean negative log-likelihood). Raises
        `JudgeError` if a text has too few tokens, or all texts together have fewer than `timed_tokens`.
        """
        if self.enlarged:
            raise HeadraceError("the cache was enlarged for scoring and is not that of the knobs; load the engine again")
        protocol = protocol or Protocol()
        timed_tokens = protocol.timed_of(self.continuation_tokens(judge))
        self.filled, slots = Filled(), self.slots
        self.spans.take()  # what an earlier pass left
        try:
            measured, self.decoded = timed_pass(
                self._timed_texts(judge, protocol, keeping), self.stats, weight_files(self.checkpoint.path),
                timed_tokens=timed_tokens, score=protocol.score, keep_going=keep_going, keep_scoring=keep_scoring,
                spans=self.spans, scoring=partial(scoring_with, self, judge.tokens(self.encode), scoring_limit_gb),
            )  # fmt: skip
        except LogitsError as e:
            raise self.explained(e, judge) from e
        return dataclasses.replace(measured, **_facts(self, measured, judge, slots))

    def explained(self, error: LogitsError, judge: Judge) -> LogitsError:
        """An error with the first layer whose output for the evaluation texts is not finite, and a remedy."""
        return self.forward.explained(
            error, [[*prompt, *continuation] for prompt, continuation in judge.tokens(self.encode)]
        )

    def continuation_tokens(self, judge: Judge) -> int:
        """Return the number of tokens to decode in all continuations. Raises `JudgeError` for too short a text."""
        return sum(len(continuation) - 1 for _, continuation in judge.tokens(self.encode))

    def teacher_forced(self, judge: Judge, protocol: Protocol | None = None) -> Iterator[tuple[Scored, Scored]]:
        """Warm up, then return for each text the pass over its prompt, in chunks, and the one over its continuation.

        Both are lazy iterators of logits, float32 [tokens, vocab], and the tokens that follow; exhaust them in this order.
        Raises `JudgeError` if a text has too few tokens.
        """
        texts = self._warmed_up(judge, protocol or Protocol())
        return (self.forward.teacher_forced(*text) for text in texts)

    def _timed_texts(self, judge: Judge, protocol: Protocol, keeping: Keeping | None) -> Iterator[tuple[Prompt, Scored]]:
        """Warm up, then return for each text its prompt, computed or restored, and the pass over its continuation.

        A prompt is computed whatever the protocol says if its state depends on earlier texts, or if a trace is to show it.
        """
        if protocol.state != PREFILLED and self.passes.trace is not None:
            raise HeadraceError(f"state={protocol.state} leaves no trace that can be replayed; record it with {PREFILLED}")
        texts = self._warmed_up(judge, protocol)
        real = protocol.prefill == REAL or self.depends_on_cache or self.passes.trace is not None
        return timed_texts(self, texts, protocol.state, None if real else keeping or Keeping())

    @contextmanager
    def trace(self, path: str | Path, ahead: Ahead | None = None) -> Iterator[None]:
        """Write the routing of everything computed inside to a Parquet file, in the format of `engine.routing.record`.

        `ahead`: predictions to record, by default those of the run itself. Raises `HeadraceError` if the file cannot be
        written or another trace is active; after an error inside no file is written.
        """
        refuse_trace(self.forced, self.checkpoint)
        if self.passes.trace is not None:
            raise HeadraceError(f"the trace {self.passes.trace.path} is still active; end it before you start {path}")
        trace = trace_writer(self.model, self.checkpoint, self.knobs, self.layers, path, self.mode, ahead)
        self.passes.trace = trace
        try:
            yield
            trace.finish()
        except BaseException:
            trace.abandon()
            raise
        finally:
            self.passes.trace = None

    def _warmed_up(self, judge: Judge, protocol: Protocol) -> list[tuple[list[int], list[int]]]:
        """Decode the warm-up tokens; return the tokens of the texts, each prompt and continuation."""
        texts = judge.tokens(self.encode)
        self.forward.begin()
        with self.spans.part(FILL):
            self.forward.warm_up(texts, protocol.warm_up_tokens)
        return texts
