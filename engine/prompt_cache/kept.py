"""Kept prompts: the prompts of a measurement, restored where their state was kept, else computed and kept.

The state after a prompt depends on the model, the lossy knobs and the text, so runs that differ in lossless knobs share it.
A prompt is kept with the routing that led there, from which the experts' cache is brought to its state. Only prompts of the
timed part are kept: no later run with the same protocol restores another one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from engine.errors import HeadraceError, first_line
from engine.knobs import GB
from engine.measure.spans import FILL
from engine.measure.timed_pass import Prefilled, Prompt, Scored, computed, token_nll
from engine.model.switches import switches
from engine.routing.forced import ForcedRouting
from engine.streaming.forward import Forward
from engine.system.user_cache import cached_file

from .folder import PrefixFolder, Words
from .identity import cache_key, digest
from .prefix import KIND, Prefix, prefix_of
from .recorder import Recorder, recorded

FOLDER = "prompts"  # in the user's cache folder
LIMIT_GB = 8.0
WORDS = Words("the folder of kept prompts", "the limit of kept prompts", "the prompt is computed in each run")
Text = tuple[list[int], list[int]]  # tokens of prompt and continuation
Fill = Callable[[np.ndarray], None]


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
        return self.folder or cached_file(FOLDER)


def timed_texts(engine: Any, texts: Sequence[Text], keeping: Keeping | None, fill: Fill) -> Iterator[tuple[Prompt, Scored]]:
    """Each text's prompt, computed or restored, and the pass over its continuation, of an `Engine` that has warmed up.

    `keeping` is None for prompts that are computed in any case. `fill`: see `KeptPrompts`.
    """
    folder = None if keeping is None else _folder(engine, texts, keeping)
    if keeping is None or folder is None:
        return (_computed(*engine.forward.teacher_forced(*text)) for text in texts)
    places = [] if engine.forced is not None else [place for place, _ in switches(engine.model, engine.checkpoint)]

    def filled(routing: np.ndarray) -> None:
        with engine.spans.part(FILL):
            fill(routing)

    kept = KeptPrompts(engine.forward, folder, places, filled, keeping.say, engine.forced)
    return (kept.passes(*text) for text in texts)


def _computed(prompt: Scored, continuation: Scored) -> tuple[Prompt, Scored]:
    return lambda _: computed(prompt), continuation


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
    """The prompts of one measurement. `switches`: paths of the model's switches, whose choices are recorded unless they are
    `forced`. `fill` brings the experts' cache to its state after a prompt with the routing int16 [tokens, layers, top-k]."""

    def __init__(
        self, forward: Forward, folder: PrefixFolder, switches: Sequence[str], fill: Fill, say: Callable[[str], None],
        forced: ForcedRouting | None = None,
    ) -> None:  # fmt: skip
        self._forward, self._folder, self._switches, self._fill, self._say = forward, folder, switches, fill, say
        self._forced = forced
        self._said = False

    def passes(self, prompt: list[int], continuation: list[int]) -> tuple[Prompt, Scored]:
        """A text's prompt, to be called first, and the pass over its continuation."""
        cache: list[Any] = []

        def prefill(timed: bool) -> Prefilled:
            begin = time.perf_counter()
            name = self._name(prompt)
            prefix = self._kept(name, len(prompt))
            if prefix is None:
                cache[:] = make_prompt_cache(self._forward.model)
                return self._computed(prompt, continuation[0], cache, name if timed else None)
            cache[:] = prefix.cache
            prefix.take_memory()
            self._fill(prefix.routing)
            if self._forced is not None:
                self._forced.position += len(prompt)
            return Prefilled(prefix.nll_with(continuation[0]), (time.perf_counter() - begin) * 1e3, restored=True)

        return prefill, self._forward.continuation(continuation, cache)

    def _name(self, prompt: list[int]) -> np.ndarray:
        """What a prompt is kept under: its tokens, after the position in a forced routing, below 0."""
        return np.array(prompt if self._forced is None else [-1 - self._forced.position, *prompt], np.int64)

    def _kept(self, name: np.ndarray, tokens: int) -> Prefix | None:
        """The prefix in a file; None if there is none, or a damaged one, which is reported and removed."""
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
            return prefix_of(caches, tokens)
        except HeadraceError as e:
            self._folder.reject(file, e)
            return None

    def _computed(self, prompt: list[int], following: int, cache: list[Any], name: np.ndarray | None) -> Prefilled:
        """Compute a prompt against the clock, then keep it under `name`; None: do not."""
        start = 0 if self._forced is None else self._forced.position
        taps = recorded(self._forward.model, self._switches) if name is not None and self._forced is None else nullcontext()
        mlx_peak = mx.get_peak_memory()
        mx.reset_peak_memory()
        with taps as recorder:
            begin = time.perf_counter()
            found, last = [], None
            for logits, targets in self._forward.prompt(prompt, following, cache):
                found.append(token_nll(logits, targets))
                last = mx.contiguous(logits[-1:])
                if recorder is not None:
                    recorder.take(len(targets))
            ms = (time.perf_counter() - begin) * 1e3
        mx.eval(last)
        del logits
        most_bytes = max(0, mx.get_peak_memory() - mx.get_active_memory())
        mlx_peak = max(mlx_peak, mx.get_peak_memory())
        nll = np.concatenate(found)
        if name is not None and last is not None and np.isfinite(nll).all():
            routing = self._routing(recorder, start, len(prompt))
            if routing is None:
                self._say("prompt cache: a layer does not choose experts for each token; the prompt is computed in each run")
            else:
                prefix = Prefix(cache, routing, nll[:-1], last, most_bytes)
                self._folder.save(name, prefix.as_caches(), KIND)
        return Prefilled(nll, ms, mlx_peak=mlx_peak)

    def _routing(self, recorder: Recorder | None, start: int, tokens: int) -> np.ndarray | None:
        if self._forced is not None:
            return self._forced.ids[np.arange(start, start + tokens) % len(self._forced.ids)].astype(np.int16)
        return None if recorder is None else recorder.routing
