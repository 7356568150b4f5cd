"""Generation thread: mlx-lm's `ResponseGenerator` with a guard, a queue with a limit, and checks of the context.

mlx-lm's loop is unchanged. It takes requests with `_next_request`, which here returns only those that may compute. It looks
for cancelled requests after each time budget, which here is one step. Its thread ends at the first error, which here becomes
the answer of all requests that compute. Every request takes the batched path; only a model whose caches cannot be merged is
served one request at a time, as mlx-lm does it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import make_text_state_machine
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.server import CompletionRequest, GenerationArguments, ResponseGenerator

from engine.engine import Engine
from engine.errors import first_line
from engine.generation.trimming import always_trimmable
from engine.serve.compute.segments import split_prompt, stable_prefix
from engine.serve.errors import RequestError, as_request_error
from engine.serve.options import ServeOptions
from engine.serve.prompt_cache import PromptCache

from .job import Job
from .limits import context_limit
from .provider import EngineProvider
from .stop import TextStop
from .waiting import WaitingRequests


class _OneStep:
    """A time budget of one step of the batch: a token of each request, or one prefill chunk."""

    def __iter__(self) -> Iterator[None]:
        return iter((None,))


class Generator(ResponseGenerator):
    """The generation thread of one engine. `submit` is called from any thread; the model runs on this one only."""

    def __init__(self, engine: Engine, options: ServeOptions, prompt_cache: PromptCache, log: Callable[[str], None]) -> None:
        self.engine = engine
        self.options = options
        self.cache = prompt_cache
        self.limit = context_limit(engine, options)
        self.waiting = WaitingRequests(options.parallel, options.queue)
        prompt_cache.busy = lambda: self.waiting.running > 0
        self._can_cut = always_trimmable(make_prompt_cache(engine.model))
        self._log = log
        self._tokenizing = threading.Lock()  # transformers' tokenizers are not safe for several threads
        super().__init__(EngineProvider(engine, options), prompt_cache)  # type: ignore[arg-type]
        self._time_budget = _OneStep()  # type: ignore[assignment]

    def submit(self, request: CompletionRequest, args: GenerationArguments, max_tokens: int | None) -> Job:
        """Tokenize a request, check its length and queue it. Raises `RequestError`."""
        with self._tokenizing:
            try:
                tokenized = self._prompt_of(request, args)
            except Exception as e:  # a template or a tokenizer may raise anything
                raise RequestError(
                    400, f"this request cannot be made into a prompt: {first_line(e)}", code="invalid_prompt"
                ) from e
        if not tokenized[0]:
            raise RequestError(400, "the prompt has no tokens; give at least one character", param="prompt")
        args.max_tokens = self.limit.fit(len(tokenized[0]), max_tokens, self.options.max_tokens)
        if not self.generation_available():
            raise RequestError(503, "the generation thread has ended; restart the server", code="unavailable")
        seeded = args.seed is not None and args.sampling.temperature > 0
        job = Job(request, args, tokenized, self.engine.stats, alone=seeded)
        self.waiting.put(job)
        return job

    def end(self, error: RequestError, timeout: float) -> None:
        """Answer all open requests with `error` and end the thread; waits at most `timeout` seconds for it."""
        for job in (*self.waiting.close(), *self.waiting.computing()):
            job.fail(error)
        self._stop = True
        self._generation_thread.join(timeout)

    def _prompt_of(self, request: CompletionRequest, args: GenerationArguments) -> tuple[Any, ...]:
        """The prompt in the form of mlx-lm's `_tokenize`; a prompt of token ids stays as it is."""
        if isinstance(request.prompt, list):
            return request.prompt, [request.prompt], ["assistant"], "normal", None
        tokenizer: Any = self.model_provider.tokenizer
        prompt, segments, kinds, *rest = super()._tokenize(tokenizer, request, args)
        stable = None
        if request.request_type == "chat" and tokenizer.has_chat_template and not self._can_cut:
            extra = {**self.model_provider.cli_args.chat_template_args, **(args.chat_template_kwargs or {})}
            stable = stable_prefix(
                lambda messages: tokenizer.apply_chat_template(messages, tools=request.tools, tokenize=True, **extra),
                request.messages,
                prompt,
            )
        chunk = self.engine.chunk.tokens
        return prompt, *split_prompt(prompt, segments, kinds, can_cut=self._can_cut, chunk=chunk, stable=stable), *rest

    def _tokenize(self, tokenizer: Any, request: Job, args: Any) -> Any:
        """The prompt, split into parts. mlx-lm consumes the list of parts, so it gets a copy."""
        prompt, segments, types, initial, vision = request.tokenized
        return prompt, [*segments], [*types], initial, vision

    def _next_request(self, timeout: float | None = None) -> Any:
        job = self.waiting.next(timeout)
        return None if job is None else (job, job, job.args)

    def _make_state_machine(self, model_key: Any, tokenizer: Any, stop_words: list[str]) -> Any:
        stop = TextStop(tokenizer, stop_words)
        return stop, Texts(stop, make_text_state_machine(tokenizer))

    def _is_batchable(self, args: Any) -> bool:
        return bool(self.model_provider.is_batchable)

    def _serve_single(self, request: Any, stream: Any) -> None:
        request[0].single = True
        super()._serve_single(request, stream)

    def _run_generate(self) -> None:
        while not self._stop:
            try:
                self._generate()
            except Exception as e:
                self._answer_all(e)
            gc.collect()

    def _answer_all(self, e: Exception) -> None:
        """Answer all requests that compute with an error. Those that wait are served afterwards."""
        error = as_request_error(e)
        self._log(f"error: {error}")
        e.__traceback__ = None  # its frames hold the failed batch
        for job in self.waiting.computing():
            job.put(error)
        mx.clear_cache()


class Texts:
    """Both parsers of a request's text: stop strings first, then mlx-lm's reasoning and tool calls."""

    def __init__(self, stop: TextStop, machine: Any) -> None:
        self.stop = stop
        self.machine = machine
