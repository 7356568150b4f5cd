"""Child process of a run: load the engine, measure, write the result. `harness.run.supervise` starts and watches it.

    python -m harness.run.worker ENGINE request.json result.json

The child imports the engine adapter ENGINE ("" for none) and then waits for a line on its standard input, after which it
reads the request: see `harness.run.children`. It ends with its parent, which holds the other end of that input. It imports
neither Optuna nor pandas nor Hydra, so that its peak memory is the engine's.

Request: `checkpoint`, `judge` (path of the evaluation texts), `knobs`, and `engine` (see `harness.study.engines`) or
`command`. Optional: `trust_code` (whether the checkpoint's own code may run); `protocol` (as `engine.Protocol`); `kept_gb`
(limit of the kept prompts); `limit_gb` (memory that the process may take while it scores); `stop` {below_tok_s, error,
noise, rival_ms}, the parameters of early stopping with the rival's time of each token; `quality` {kl: bool, json_prompts:
path or null}; `stop_scoring`, the parameters of `stopping.scoring`; `keep_nll`, a file for the log-likelihoods of a
complete scoring; `known`, a file with what the search knows of the checkpoint (`engine.checkpoint.known`); `timed`, a file
that is made when timing has ended and scoring goes on; and `beat`, a file that is touched after loading and then, at most
every second, while the engine works. An engine that reports no progress never creates that file.

Result: `figures` (by column), `token_ms` (a list; null if the engine does not report it), `ended_early`, `scoring_stopped`
(null, or {reason, tokens, at_least, at_most}), `score_s` (seconds after the last timed token, spent on quality; null if
unknown), `prepare_s` and `load_s` (seconds before loading and of it), `began_s` and `ended_s` (when this process had its
request and its result, by `clocks.awake`), `protocol` (the one followed, or "engine's own" if the engine takes none) and
`page_cache_by` (how the page cache was prepared). After a failure: `error` (class name) and `reason` (one line); an error
that does not come from this program is printed with its traceback as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import engine.tokenizer.without_torch  # noqa: F401 - before mlx-lm
from engine import HeadraceError, Judge, Knobs, Measurement, Protocol, prepare_page_cache
from engine.checkpoint.known import opened, take
from engine.errors import OUT_OF_MEMORY, first_line, foreseeable
from engine.measure.protocol import REAL, RESTORED
from engine.system import atomic
from engine.system.page_cache import cached_share, weight_files
from engine.system.strict_json import from_json, to_json
from harness.machine.clocks import awake
from harness.study.engines import CommandEngine, engine_at

from .beat import Beat, Signal
from .stopping.early_stopping import Early
from .stopping.scoring import Stopped, scoring_of

ENGINES_OWN = "engine's own"
OWN_MODULES = (
    "engine.engine",
    "engine.prompt_cache.kept",
    "engine.plan.ceiling",
    "engine.plan.memory.activations",
)  # of this project's engine


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The result of a request."""
    try:
        return _measure(request)
    except Exception as e:
        reason = foreseeable(e)
        if reason is None:
            raise
        if not isinstance(e, HeadraceError):
            traceback.print_exc()  # for the row's log_tail: the reason does not name the place in a user's engine
        if reason == OUT_OF_MEMORY:
            return {"error": "MemoryError", "reason": f"{_named(e)}; {reason}"}
        return {"error": type(e).__name__, "reason": reason}


def _named(e: BaseException) -> str:
    """The class and the first line of an error's message."""
    name, said = type(e).__name__, first_line(e).rstrip(".")
    return name if said == name else f"{name}: {said}"


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    if request.get("known"):
        take(Path(request["known"]))
    knobs = Knobs.from_mapping(request["knobs"])
    protocol = Protocol.from_mapping(request.get("protocol") or {})
    if request.get("engine") == "engine" and _wanted_quality(request)["kl"]:
        _ensure_reference(request)  # it reads the whole checkpoint, so it comes before the page cache is prepared
    if request.get("engine") == "engine" and (protocol.page_cache == "cold" or protocol.prefill == RESTORED):
        # Where it is not known, it reads from every tensor, so it comes first as well.
        _ = opened(request["checkpoint"], trust_code=_trusts(request)).fingerprint
    by = prepare_page_cache(request["checkpoint"], protocol.page_cache, knobs.io_mode)
    files = weight_files(request["checkpoint"])
    cached_before = cached_share(files)
    prepare_s = time.perf_counter() - begin
    if request.get("command"):
        answer = CommandEngine(request["command"]).measure(request)
        if "error" in answer:
            return {"error": str(answer["error"]), "reason": " ".join(str(answer.get("reason", "")).split())[:300]}
        run = _Run(Measurement.from_mapping(answer), followed=False)
    else:
        run = _run(request, knobs, protocol)
    measurement = run.measurement
    figures = measurement.as_dict()
    for name, value in _wanted_quality(request).items():
        if value and figures[name] is None and protocol.score and not measurement.ended_early:
            raise HeadraceError(f"{name} is requested, but this engine does not measure it; remove it from the study")
    figures["page_cached_before"] = cached_before
    figures["prefill"] = figures["prefill"] or REAL  # another engine keeps no prompts
    if figures["page_cached_after"] is None:
        figures["page_cached_after"] = cached_share(files)
    if figures["timed_s"] is None and measurement.token_ms:
        figures["timed_s"] = sum(measurement.token_ms) / 1e3
    return {
        "figures": figures,
        "token_ms": None if measurement.token_ms is None else list(measurement.token_ms),
        "ended_early": measurement.ended_early,
        "scoring_stopped": None if run.scoring_stopped is None else dataclasses.asdict(run.scoring_stopped),
        "score_s": run.score_s if protocol.score else None,
        "prepare_s": prepare_s,
        "load_s": run.load_s,
        "protocol": protocol.as_dict() if run.followed else ENGINES_OWN,
        "page_cache_by": by,
    }


@dataclasses.dataclass(frozen=True)
class _Run:
    """The measurement of an engine, whether it followed the protocol, the seconds spent on quality and on loading, and why
    scoring ended early."""

    measurement: Measurement
    followed: bool
    score_s: float | None = None
    load_s: float | None = None
    scoring_stopped: Stopped | None = None


def _run(request: dict[str, Any], knobs: Knobs, protocol: Protocol) -> _Run:
    """The run of an engine in this process."""
    begin = time.perf_counter()
    engine, judge = engine_at(request["engine"], trust_code=_trusts(request)), Judge.load(request["judge"])
    wanted_quality = _wanted_quality(request)
    loaded = engine.load(request["checkpoint"], knobs)
    takes = inspect.signature(loaded.measure).parameters
    all_names = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    wanted = {name for name in ("protocol", "keep_going", "keep_scoring") if all_names or name in takes}
    wanted |= {"keeping", "scoring_limit_gb"} & set(takes)
    own_engine = hasattr(loaded, "teacher_forced")  # it has counters, and engine.quality accepts it
    beat = Beat(request.get("beat"))
    if own_engine or "keep_going" in wanted:
        beat.now()
    if own_engine:
        beat.watch(lambda: (loaded.stats.tokens, loaded.stats.bytes_read))
    early = _early(request.get("stop"), protocol, loaded, judge)
    by_quality = own_engine and any(wanted_quality.values())
    _ = getattr(loaded, "tokenizer", None)  # opened here, because it is part of loading
    load_s = time.perf_counter() - begin

    last = 0.0

    def keep_going(token_ms: list[float]) -> bool:
        nonlocal last
        last = time.perf_counter()
        beat()
        return early is None or early(token_ms)

    # KL needs a pass of its own over all texts, which yields perplexity as well.
    follow = dataclasses.replace(protocol, score=False) if by_quality and wanted_quality["kl"] else protocol
    scoring, timed = scoring_of(request.get("stop_scoring")), Signal(request.get("timed"))

    def keep_scoring(nll: list[np.ndarray], tok_s: float, peak_gb: float) -> bool:
        timed()
        return scoring is None or scoring(nll, tok_s, peak_gb)

    given: dict[str, Any] = {"protocol": follow, "keep_going": keep_going, "keep_scoring": keep_scoring}
    given["scoring_limit_gb"] = request.get("limit_gb")
    if "keeping" in wanted:
        from engine.prompt_cache.kept import LIMIT_GB, Keeping  # it imports mlx-lm, which another engine does not need

        given["keeping"] = Keeping(request.get("kept_gb") or LIMIT_GB)
    answer = loaded.measure(judge, **{name: given[name] for name in wanted})
    measurement = Measurement.from_mapping(answer) if isinstance(answer, Mapping) else answer
    if by_quality and not measurement.ended_early:
        from engine.cache_state.enlarge import scoring_with

        timed()
        limit_gb = request.get("limit_gb") if wanted_quality["kl"] else None  # without KL the texts are scored already
        with scoring_with(loaded, judge.tokens(loaded.encode), limit_gb, 0, loaded.decoded) as share:
            measurement = _with_quality(measurement, loaded, judge, request)
        measurement = dataclasses.replace(measurement, scoring_cached_share=share)
    if request.get("keep_nll") and measurement.token_nll is not None:
        with atomic.replacing(Path(request["keep_nll"]), durable=False) as partial, open(partial, "wb") as file:
            np.save(file, np.array(measurement.token_nll))
    score_s = time.perf_counter() - last if last else None
    stopped = scoring.stopped if scoring is not None and measurement.perplexity is None else None  # an engine may go on
    return _Run(measurement, "protocol" in wanted, score_s, load_s, stopped)


def _trusts(request: dict[str, Any]) -> bool:
    return bool(request.get("trust_code"))


def _wanted_quality(request: dict[str, Any]) -> dict[str, bool]:
    quality = request.get("quality") or {}
    return {"kl": bool(quality.get("kl")), "json_valid": bool(quality.get("json_prompts"))}


def _json_prompts(request: dict[str, Any]) -> Any:
    from engine.quality.json_prompts import JsonPrompts

    path = request["quality"].get("json_prompts")
    return JsonPrompts.load(path) if path else None


def _ensure_reference(request: dict[str, Any]) -> None:
    """Compute the reference logits if they are not cached, in a process of their own, before this one loads a model."""
    from engine.quality.reference import compute_reference, reference_file

    source, judge = opened(request["checkpoint"], trust_code=_trusts(request)), Judge.load(request["judge"])
    prompts = _json_prompts(request)
    if not reference_file(source, judge, prompts).exists():
        compute_reference(source, judge, prompts)


def _with_quality(measurement: Measurement, loaded: Any, judge: Judge, request: dict[str, Any]) -> Measurement:
    """The measurement with KL and JSON validity as requested; with KL, perplexity comes from the same pass."""
    prompts = _json_prompts(request)
    if not _wanted_quality(request)["kl"]:
        return dataclasses.replace(measurement, json_valid=float(prompts.valid(loaded.generate).mean()))
    from engine.quality.quality import quality
    from engine.quality.reference import reference_for

    measured = quality(loaded, judge, reference_for(loaded.checkpoint, judge, prompts), prompts)
    names = ("perplexity", "perplexity_se", "nll", "scored_tokens", "kl", "json_valid")
    return dataclasses.replace(measurement, **{name: getattr(measured, name) for name in names})


def _early(stop: Mapping[str, float] | None, protocol: Protocol, loaded: Any, judge: Judge) -> Callable[[Any], bool] | None:
    if not stop:
        return None
    total = protocol.timed_tokens
    if total is None:
        if not hasattr(loaded, "continuation_tokens"):
            return None
        total = loaded.continuation_tokens(judge)
    rule = Early(stop["below_tok_s"], stop["error"], total, stop.get("noise") or 0.0)
    rival = np.asarray(stop.get("rival_ms") or (), float)
    if len(rival) != total:
        return None if len(rival) else rule
    # Texts differ by more than settings do; comparing the same tokens of the rival removes that difference.
    level = rival.mean() - rival
    return lambda token_ms: rule(np.maximum(np.asarray(token_ms) + level[: len(token_ms)], 1e-3))


def import_ahead(engine: str) -> None:
    """Import what a run of this engine needs: it is the same for every setting. An error recurs when the run imports it."""
    with contextlib.suppress(Exception):
        for name in (engine.partition(":")[0], *OWN_MODULES * (engine == "engine")):
            if name:
                importlib.import_module(name)


def _follow_parent(go: threading.Event) -> None:
    """Set `go` at the first line of the input, and end this process at the end of the input."""
    if os.read(0, 1):  # not sys.stdin, whose lock would block the interpreter's shutdown
        go.set()
        os.read(0, 1)
    if os.getpgrp() == os.getpid():  # end all descendants as well
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(engine: str, request_path: str, result_path: str) -> None:
    go = threading.Event()
    threading.Thread(target=_follow_parent, args=(go,), daemon=True).start()
    import_ahead(engine)
    go.wait()
    began_s = awake()
    result = measure(from_json(Path(request_path).read_text()))
    result |= {"began_s": began_s, "ended_s": awake()}
    atomic.write_text(Path(result_path), to_json(result), durable=False)
    if engine == "engine":  # nothing is left to do at the interpreter's exit, which takes a third of a second with MLX
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
