"""Engine: a model with its routed experts streamed, and the four things one does with it.

mlx-lm loads the model lazily, so that expert weights are never read by it; a StreamingSwitch is put where each of its
switches stood; everything else is read and stays. With `Knobs()` the model is mlx-lm's own, with nothing
put in the place of anything (on the CPU its matrices lie otherwise in memory, with the same bits as a result): the
reference that every lossless setting must equal to the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load_tokenizer

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import CheckpointError, HeadraceError, JudgeError, KnobError, first_line
from engine.knobs import CACHE_DEPENDENT, GB, Knobs
from engine.measure.judge import Judge
from engine.measure.measurement import Measurement
from engine.measure.protocol import Protocol
from engine.measure.timed_pass import measure
from engine.model.backend import backend
from engine.model.resident import quantize_resident
from engine.plan.banks import compute_dtype, footprint, needs_profile, plan_banks, plan_bits
from engine.plan.bits import BitsPlan
from engine.routing.profile import routing_profile
from engine.routing.record import TraceWriter
from engine.stats import Stats
from engine.streaming.install import (
    check_top_k,
    fill,
    is_last,
    lay_out_for_cpu,
    open_model,
    put_gates,
    put_streams,
    run_for,
    switches,
)
from engine.streaming.layer import LayerStream, Run
from engine.streaming.speculate import Windows
from engine.system.memory import memory_bytes
from engine.system.page_cache import cached_share, weight_files

Scored = Iterator[tuple[mx.array, list[int]]]


def load(checkpoint: str | Path, knobs: Knobs | None = None) -> Engine:
    """Open a checkpoint folder with the given knobs.

    Raises `CheckpointError` if it cannot be streamed, `KnobError` if a knob does not fit this model.
    """
    knobs = knobs or Knobs()
    cached = cached_share(weight_files(checkpoint))  # before the headers are read
    source = Checkpoint.open(checkpoint).with_top_k(knobs.top_k)
    # A store's experts are ours to read, wherever they stay; what has no checksums is refused by the plan.
    streamed = knobs.streams or knobs.verify_reads or source.levels is not None
    bits = plan_bits(source, knobs)
    plans = plan_banks(source, knobs, bits) if streamed else []
    _refuse_too_large(source, knobs)
    if streamed and needs_profile(knobs):
        profile = routing_profile(source)
        bits = plan_bits(source, knobs, profile)
        plans = plan_banks(source, knobs, bits, profile)
    mx.reset_peak_memory()
    model = open_model(source)
    if knobs.top_k is not None:
        check_top_k(model, source)
    run = run_for(source, knobs) if streamed else None
    try:
        streams, windows = put_streams(model, source, knobs, plans, run) if run is not None else ([], None)
        dtype = compute_dtype()
        if dtype is not None:
            model.set_dtype(dtype)
        if knobs.resident_bits is not None:
            quantize_resident(model, source, knobs.resident_bits)
            for module in model.modules():  # one by one: no more than one is held as stored and as wanted
                mx.eval([value for value in module.values() if isinstance(value, mx.array)])
        if dtype is not None:
            lay_out_for_cpu(model)
        mx.eval(model.parameters())
        model.eval()
        if run is not None:
            put_gates(model, source, knobs, streams)
            fill(streams, plans, run)
            run.stats.reset()
    except BaseException:
        if run is not None:
            run.reader.close()
        raise
    return Engine(source, knobs, bits, model, streams, run, windows, cached)


def _refuse_too_large(source: Checkpoint, knobs: Knobs) -> None:
    """What cannot fit into memory is refused before the first byte is read."""
    need, have = footprint(source, knobs), memory_bytes() / GB
    if need.predicted_peak_gb > have:
        room = have - need.resident_gb
        remedy = f"set cache_gb below {room:.4g}" if room > need.one_token_gb else "it needs a machine with more"
        asked = "every expert resident" if knobs.cache_gb is None else f"cache_gb={knobs.cache_gb:g}"
        raise KnobError(
            f"{asked} with {need.resident_gb:.4g} GB of other weights takes {need.predicted_peak_gb:.4g} GB, more than the "
            f"{have:.4g} GB of memory here; {remedy}"
        )


class Engine:
    """A loaded model. Use it as a context manager, or `close()` it, to end its reader threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        knobs: Knobs,
        bits: BitsPlan,
        model: nn.Module,
        streams: list[LayerStream],
        run: Run | None,
        windows: Windows | None,
        page_cached_before: float | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.knobs = knobs
        self.bits = bits
        self.streams = streams
        self.windows = windows
        self.page_cached_before = page_cached_before  # share of the checkpoint's files, before they were loaded
        self.decoded = Stats()  # what the last `measure` counted while it decoded
        self.stats = run.stats if run else Stats()
        self._model = model
        self._run = run
        self._trace: TraceWriter | None = None
        self._complete = sum(stream.complete for stream in streams)  # layers that are sure to hit

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the reader's threads and close its files. The engine cannot be used afterwards."""
        if self._run is not None:
            self._run.reader.close()

    @cached_property
    def tokenizer(self) -> Any:
        """mlx-lm's tokenizer of the checkpoint."""
        try:
            return load_tokenizer(self.checkpoint.path)
        except (OSError, ValueError, ImportError) as e:
            raise CheckpointError(f"{self.checkpoint.path}: its tokenizer cannot be opened ({first_line(e)})") from e

    @property
    def uses(self) -> np.ndarray:
        """How often each routed expert was chosen since loading: int64 [layers, experts]. Streamed engines only."""
        assert self._run is not None
        return self._run.uses

    @property
    def mode(self) -> str:
        """Which path runs, e.g. `streamed float32 cpu buffered`; part of every row of results."""
        kind = "streamed" if self.knobs.cache_gb is not None else "resident" if self.knobs.lossy else "reference"
        dtype = str(compute_dtype() or "as-stored").removeprefix("mlx.core.")
        words = [kind, dtype, backend()]
        if kind == "streamed":
            words.append(self.knobs.io_mode)
            if self.knobs.ssd_gbps is not None:
                words.append(f"held-to-{self.knobs.ssd_gbps:g}-GB/s")
        return " ".join(words)

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Token ids of a text; `start`: with what the tokenizer puts before a document."""
        return list(self.tokenizer.encode(text, add_special_tokens=start))

    def logits(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Next-token logits after each token, teacher-forced from an empty context: float32 [tokens, vocab].

        Raises `HeadraceError` for an empty sequence or an id outside the vocabulary.
        """
        ids = [int(i) for i in token_ids]
        vocab = int(self.checkpoint.text_config.get("vocab_size", 0))
        wrong = next((i for i in ids if i < 0 or (vocab and i >= vocab)), None)
        if not ids or wrong is not None:
            what = "no tokens were given" if not ids else f"token id {wrong} is outside 0 .. {vocab - 1}"
            raise HeadraceError(f"logits: {what}; encode the text with this model's tokenizer")
        self._begin()
        cache = make_prompt_cache(self._model)
        return np.concatenate([np.array(part) for part in self._prefill(ids, cache)])

    def generate(self, prompt: str, max_tokens: int = 64, *, temperature: float = 0.0, seed: int = 0) -> Iterator[str]:
        """Continue `prompt`; yields text as it comes, until the end-of-text token or `max_tokens`. Greedy at 0."""
        self._begin()
        mx.random.seed(seed)
        sampler = make_sampler(temp=temperature)
        detokenizer = self.tokenizer.detokenizer
        detokenizer.reset()
        cache = make_prompt_cache(self._model)
        ids = self.encode(prompt)
        if not ids:
            raise HeadraceError("generate: the prompt is empty; give at least one character")
        self._take_in(ids[:-1], cache)
        logits = self._forward(ids[-1:], cache)
        for _ in range(max_tokens):
            token = int(sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0])
            if token in self.tokenizer.eos_token_ids:
                break
            detokenizer.add_token(token)
            yield detokenizer.last_segment
            logits = self._decode(token, cache)
        detokenizer.finalize()
        yield detokenizer.last_segment

    def measure(
        self, judge: Judge, protocol: Protocol | None = None, keep_going: Callable[[list[float]], bool] | None = None
    ) -> Measurement:
        """Decode the judge's texts against the clock, as the protocol has it (see `engine.measure.timed_pass`).

        `keep_going` gets the milliseconds of the timed tokens after each of them; when it says no the measurement ends with
        what it has. perplexity = exp(mean negative log-likelihood). Raises `JudgeError` if a text has too few tokens, or all
        of them together fewer than are to be timed.
        """
        return measure(self, judge, protocol or Protocol(), keep_going)

    def continuation_tokens(self, judge: Judge) -> int:
        """How many tokens the judge's continuations have the engine decode. Raises `JudgeError` for too short a text."""
        return sum(len(continuation) - 1 for _, continuation in self._tokens_of(judge))

    def teacher_forced(self, judge: Judge, protocol: Protocol | None = None) -> Iterator[tuple[Scored, Scored]]:
        """Warm up; then, text by text, the pass over its prompt, in chunks, and that over its continuation, token by
        token: iterators of logits, float32 [tokens, vocab], and the tokens that follow, to be run through in this order.

        Raises `JudgeError` if a text has too few tokens.
        """
        texts = self._tokens_of(judge)
        self._begin()
        self._warm_up(texts, (protocol or Protocol()).warm_up_tokens)
        return (self._passes(*text) for text in texts)

    def _passes(self, prompt: list[int], continuation: list[int]) -> tuple[Scored, Scored]:
        cache = make_prompt_cache(self._model)
        targets = iter([*prompt[1:], continuation[0]])
        return (
            ((logits, list(itertools.islice(targets, len(logits)))) for logits in self._prefill(prompt, cache)),
            ((self._decode(token, cache), [target]) for token, target in itertools.pairwise(continuation)),
        )

    @contextmanager
    def trace(self, path: str | Path) -> Iterator[None]:
        """Write the routing of all that is computed inside, a measurement's warm-up apart, to a Parquet file (see
        `engine.routing.record`). Raises `HeadraceError` if the file cannot be written; after an error inside none is."""
        if self._trace is not None:
            raise HeadraceError(f"the trace {self._trace.path} is being taken; end it before you begin {path}")
        found = [place for place, _ in switches(self._model, self.checkpoint)]
        ends = is_last(found[-1], dict(self._model.named_modules()))
        self._trace = trace = TraceWriter(self._model, self.checkpoint, found, ends, path, self.mode)
        try:
            yield
            trace.finish()
        except BaseException:
            trace.abandon()
            raise
        finally:
            self._trace = None

    def _begin(self) -> None:
        """Where a knob decides by what is cached, begin with the cache as it was after loading: the same tokens give the
        same logits, whatever was computed before."""
        if self._run is not None and any(name in CACHE_DEPENDENT for name in self.knobs.lossy):
            self._run.forget()
            for stream in self.streams:
                stream.forget()

    def _tokens_of(self, judge: Judge) -> list[tuple[list[int], list[int]]]:
        texts = []
        for text in judge.texts:
            tokens = self.encode(text.prompt), self.encode(text.continuation, start=False)
            if len(tokens[0]) < 1 or len(tokens[1]) < 2:
                raise JudgeError(
                    f"text {text.name} has too few tokens ({len(tokens[0])} + {len(tokens[1])}, at least 1 + 2); lengthen it"
                )
            texts.append(tokens)
        return texts

    def _warm_up(self, texts: list[tuple[list[int], list[int]]], tokens: int) -> None:
        """Compile and touch what the first tokens would, outside the measured time and the trace: a prompt of at most so
        many tokens, then as many decoded ones, from one text after the other and from the first again."""
        trace, self._trace = self._trace, None
        for prompt, continuation in itertools.cycle(texts):
            if tokens <= 0:
                break
            cache = make_prompt_cache(self._model)
            list(self._prefill(prompt[:tokens], cache))
            for token in continuation[:tokens]:
                self._decode(token, cache)
            tokens -= len(continuation)
        self._trace = trace

    def _prefill(self, ids: list[int], cache: list[Any]) -> Iterator[mx.array]:
        for begin in range(0, len(ids), self.knobs.prefill_chunk):
            logits = self._forward(ids[begin : begin + self.knobs.prefill_chunk], cache)
            mx.eval([c.state for c in cache])
            yield logits

    def _take_in(self, ids: list[int], cache: list[Any]) -> None:
        """Prefill without logits: what only they need (the last layer's experts, the head) is neither read nor computed."""
        if self._run is not None:
            self._run.unused = True
        try:
            for begin in range(0, len(ids), self.knobs.prefill_chunk):
                some = ids[begin : begin + self.knobs.prefill_chunk]
                self._model(mx.array([some]), cache=cache)
                mx.eval([c.state for c in cache])
                self._passed(len(some), "prefill", last_layer=False)
        finally:
            if self._run is not None:
                self._run.unused = False

    def _decode(self, token: int, cache: list[Any]) -> mx.array:
        with self.stats.timed_token():
            return self._forward([token], cache, "decode")

    def _forward(self, ids: list[int], cache: list[Any], phase: str = "prefill") -> mx.array:
        """Logits after each of `ids`, float32 [tokens, vocab], evaluated: no queued graph reads a slot any more."""
        logits = self._model(mx.array([ids]), cache=cache)[0].astype(mx.float32)
        mx.eval(logits)
        self._passed(len(ids), phase)
        return logits

    def _passed(self, tokens: int, phase: str, *, last_layer: bool = True) -> None:
        """Do the books of a forward pass."""
        self.stats.tokens += tokens
        if self._run is not None:
            self._run.end_pass(tokens)
            self.stats.hits += tokens * self.checkpoint.top_k * self._complete
        if self._trace is not None:
            self._trace.passed(tokens, phase, last_layer=last_layer)
