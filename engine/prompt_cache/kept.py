"""Kept prompts: the prompts of a measurement, restored where their state was kept, else computed and kept.

The state after a prompt depends on the model, the lossy knobs and the text, so runs that differ in lossless knobs share it.
A prompt is kept with the routing that led there, from which the experts' cache is brought to its state. Only prompts of the
timed part are kept: no later run with the same protocol restores another one. What is kept is computed without the clock,
and the experts' cache is filled without it, so these reads are not held to `ssd_gbps`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from engine.cache_state.start import Start
from engine.errors import HeadraceError, first_line
from engine.knobs import GB
from engine.measure.spans import FILL, Spans
from engine.measure.timed_pass import Prefilled, Prompt, Scored, computed, token_nll
from engine.model.switches import switches
from engine.routing.forced import ForcedRouting
from engine.streaming.forward import Forward
from engine.system.user_cache import KEPT_PROMPTS, cached_file

from .folder import PrefixFolder, Words
from .identity import cache_key, digest
from .prefix import KIND, Prefix, prefix_of
from .recorder import Recorder, recorded

LIMIT_GB = 8.0
WORDS = Words("the folder of kept prompts", "the limit of kept prompts", "the prompt is computed in each run")
Text = tuple[list[int], list[int]]  # tokens of prompt and continuation
AfterPrompt = Callable[[np.ndarray | None], None]


def note(line: str) -> None:
    """Print a line on standard error."""
    print(f"note: {line}", file=sys.stderr)


@dataclass(frozen=True)
class Keeping:
    """Where prompts are kept, and up to how many GB, of all models. `folder`: by default in the user's cache folder. `say`
    receives one line for each thing that a user should know."""

    limit_gb: float = LIMIT_GB
    folder: Path | None = None
    say: Callable[[str], None] = note

    def __post_init__(self) -> None:
        if not self.limit_gb > 0:
            raise HeadraceError(f"the limit of kept prompts, {self.limit_gb:g} GB, is not above 0; set prefill=real instead")

    @property
    def path(self) -> Path:
        """The folder in use."""
        return self.folder or cached_file(KEPT_PROMPTS)


def timed_texts(
    engine: Any, texts: Sequence[Text], state: str, keeping: Keeping | None = None
) -> Iterator[tuple[Prompt, Scored]]:
    """Each text's prompt, computed or restored, and the pass over its continuation, of an `Engine` that has warmed up.

    After each prompt of the timed part the experts' cache is in `state` (see `engine.cache_state.start`). `keeping` is None
    for prompts that are computed in any case.
    """
    folder = None if keeping is None else _folder(engine, texts, keeping)
    kept = KeptPrompts(engine, folder, note if keeping is None else keeping.say)
    start = Start(engine, state, engine.chunk.tokens, lambda: [kept.routing(*text) for text in texts])
    for number, text in enumerate(texts):
        yield kept.passes(*text, partial(start.after_prompt, number))


def _folder(engine: Any, texts: Sequence[Text], keeping: Keeping) -> PrefixFolder | None:
    """The folder of an engine's model and lossy setting; None, with a line, if it cannot be used.

    The prefill chunk belongs to the key only if a prompt is longer than one.
    """
    chunk = engine.chunk.tokens
    divided = any(len(prompt) > chunk for prompt, _ in texts)
    forced = None if engine.forced is None else digest({"ids": engine.forced.ids.tolist()})
    try:
        key = cache_key(engine.checkpoint, engine.knobs, engine.bits, chunk if divided else 0, forced=forced)
        return PrefixFolder(keeping.path, key, int(keeping.limit_gb * GB), keeping.say, WORDS)
    except HeadraceError as e:
        keeping.say(f"{first_line(e)}; every prompt is computed")
        return None


class KeptPrompts:
    """The prompts of one measurement of an `Engine`, in `folder`; without one, all are computed."""

    def __init__(self, engine: Any, folder: PrefixFolder | None, say: Callable[[str], None]) -> None:
        self._forward: Forward = engine.forward
        self._spans: Spans = engine.spans
        self._forced: ForcedRouting | None = engine.forced
        self._engine, self._folder, self._say = engine, folder, say
        self._said = False
        self._mlx_peak = 0  # before the last reset, bytes

    def passes(self, prompt: list[int], continuation: list[int], after: AfterPrompt) -> tuple[Prompt, Scored]:
        """A text's prompt, to be called first, and the pass over its continuation. `after` is called after a timed prompt,
        with its routing if it was restored."""
        cache: list[Any] = []

        def prefill(timed: bool) -> Prefilled:
            prefix = self._kept(prompt)
            if prefix is None:
                found, _ = self._computed(prompt, continuation[0], cache, record=timed and self._folder is not None)
            else:
                cache[:] = prefix.cache
                if self._forced is not None:
                    self._forced.position += len(prompt)
                found = Prefilled(prefix.nll_with(continuation[0]), None, restored=True)
            if timed or self._engine.depends_on_cache:  # then quality depends on the state, too
                with self._spans.part(FILL), self._engine.passes.unclocked():
                    if prefix is not None:
                        prefix.take_memory()
                    after(None if prefix is None else prefix.routing)
            return replace(found, mlx_peak=self._mlx_peak)

        return prefill, self._forward.continuation(continuation, cache)

    def routing(self, prompt: list[int], continuation: list[int]) -> np.ndarray:
        """The choices for a prompt, int16 [tokens, layers, top-k], computed unless they are kept.

        Raises `HeadraceError` for a model that has none for a token.
        """
        if self._forced is not None:
            return self._chosen(None, self._forced.position, len(prompt))  # type: ignore[return-value]
        prefix = self._kept(prompt)
        routing = prefix.routing if prefix else self._computed(prompt, continuation[0], [], record=True)[1]
        if routing is None:
            raise HeadraceError("state=steady is not possible: a layer has no choice for some tokens; set state=prefilled")
        return routing

    def _name(self, prompt: list[int]) -> np.ndarray:
        """What a prompt is kept under: its tokens, after the position in a forced routing, below 0."""
        return np.array(prompt if self._forced is None else [-1 - self._forced.position, *prompt], np.int64)

    def _kept(self, prompt: list[int]) -> Prefix | None:
        """The prefix in a file; None if there is none, or a damaged one, which is reported and removed."""
        if self._folder is None:
            return None
        name = self._name(prompt)
        file = self._folder.find(name)
        if file is None:
            if self._folder.others(name) and not self._said:
                self._said = True
                self._say("prompt cache: a prompt is kept of another model, setting or version; it is computed anew")
            return None
        caches = self._folder.load(file)
        if caches is None:
            return None
        try:
            return prefix_of(caches, len(prompt))
        except HeadraceError as e:
            self._folder.reject(file, e)
            return None

    def _computed(
        self, prompt: list[int], following: int, cache: list[Any], *, record: bool
    ) -> tuple[Prefilled, np.ndarray | None]:
        """Compute a prompt against the clock; or, with `record`, without it, return its routing, and keep it if possible."""
        cache[:] = make_prompt_cache(self._forward.model)
        if not record:
            return computed(self._forward.prompt(prompt, following, cache)), None
        name, start = self._name(prompt), 0 if self._forced is None else self._forced.position
        self._mlx_peak = max(self._mlx_peak, mx.get_peak_memory())
        mx.reset_peak_memory()
        with self._engine.passes.unclocked(), self._recorded() as recorder:
            found = []
            for logits, targets in self._forward.prompt(prompt, following, cache):
                found.append(token_nll(logits, targets))
                if recorder is not None:
                    recorder.take(len(targets))
        last = mx.contiguous(logits[-1:])
        mx.eval(last)
        del logits
        most_bytes = max(0, mx.get_peak_memory() - mx.get_active_memory())
        nll = np.concatenate(found)
        routing = self._chosen(recorder, start, len(prompt))
        if self._folder is not None and routing is None:
            self._say("prompt cache: a layer does not choose experts for each token; its prompts are computed in each run")
        elif self._folder is not None and routing is not None and np.isfinite(nll).all():
            self._folder.save(name, Prefix(cache, routing, nll[:-1], last, most_bytes).as_caches(), KIND)
        return Prefilled(nll, None), routing

    def _recorded(self) -> AbstractContextManager[Recorder | None]:
        if self._forced is not None:
            return nullcontext()
        return recorded(self._forward.model, [place for place, _ in switches(self._forward.model, self._engine.checkpoint)])

    def _chosen(self, recorder: Recorder | None, start: int, tokens: int) -> np.ndarray | None:
        if self._forced is not None:
            return self._forced.ids[np.arange(start, start + tokens) % len(self._forced.ids)].astype(np.int16)
        return None if recorder is None else recorder.routing
