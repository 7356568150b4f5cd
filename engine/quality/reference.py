"""Reference: the unchanged model's next-token distribution for every scored token, stored on disk in compressed form.

For each scored token the likeliest entries are kept: the fewest that leave at most TAIL of the probability, at most MOST.
All others form one bucket (see `engine.quality.divergence`). Kept entries are raw float32 logits beside their log-sum in
float64, so that equal logits give a divergence of exactly 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.engine import Engine
from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.measure.judge import Judge
from engine.measure.not_finite import LogitsError
from engine.measure.timed_pass import token_nll
from engine.model.backend import backend, compute_dtype
from engine.plan.footprint import ROOM, cache_within, weights_of
from engine.system.memory import memory_bytes
from engine.system.strict_json import to_json
from engine.system.user_cache import cached_file, compute_apart

from .divergence import MOST, TAIL, bounds, likeliest, log_bucket
from .json_prompts import JsonPrompts

FORMAT = 1  # raised when the file or its content changes meaning


@dataclass(frozen=True)
class Reference:
    """A model's distributions over n scored tokens, with k kept entries in total."""

    identity: str  # JSON: model, texts and arithmetic; see `_identity`
    mode: str  # the engine's path that ran
    vocab: int
    targets: np.ndarray  # int32 [n]: the texts' tokens
    nll: np.ndarray  # float64 [n], nats
    top1: np.ndarray  # int32 [n]
    lse: np.ndarray  # float64 [n]: log-sum-exp of the logits
    rest: np.ndarray  # float64 [n]: log-probability of all entries that are not kept; -inf if there are none
    ends: np.ndarray  # int64 [n]: end of each token's entries in `ids` and `logits`
    ids: np.ndarray  # int32 [k], ascending within a token
    logits: np.ndarray  # float32 [k]
    json_valid: np.ndarray  # bool [prompts], empty without JSON prompts
    origin: str = "on file"

    @property
    def nbytes(self) -> int:
        """Size of all arrays in memory, bytes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def divergence(self, token: int, logits: np.ndarray) -> tuple[float, float]:
        """Return a lower and an upper bound of KL(reference || other), nats, for scored token number `token`.

        `logits` [vocab] are the other model's, float64.
        """
        some = slice(self.ends[token - 1] if token else 0, self.ends[token])
        return bounds(self.ids[some], self.logits[some] - self.lse[token], self.rest[token], logits)

    def to_bytes(self) -> bytes:
        """Return the content of the file: a digest, then a compressed npz."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "origin"}
        arrays["ids"] = np.diff(self.ids, prepend=np.int32(0))
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        return hashlib.sha256(content.getvalue()).digest() + content.getvalue()

    @classmethod
    def read(cls, file: Path, identity: str) -> Reference:
        """Read the reference in `file`. Raises `HeadraceError` if it is damaged or has another identity."""
        try:
            content = file.read_bytes()
        except OSError as e:
            raise HeadraceError(f"{file} cannot be read ({e.strerror})") from e
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise HeadraceError(f"{file} is damaged")
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as stored:
            if stored["identity"].item() != identity:
                raise HeadraceError(f"{file} belongs to another model, text or version")
            arrays = {name: stored[name] if stored[name].ndim else stored[name].item() for name in stored.files}
        arrays["ids"] = np.cumsum(arrays["ids"], dtype=np.int32)
        return cls(**arrays)


def scored_rows(engine: Engine, judge: Judge) -> Iterator[tuple[np.ndarray, int, float]]:
    """Yield every scored token in the order of `Engine.measure`: the logits before it, float64 [vocab], its id and its nll.

    The negative log-likelihood is in nats. Raises `LogitsError` for logits that are not finite.
    """
    for passes in engine.teacher_forced(judge):
        for logits, targets in itertools.chain(*passes):
            for row, target, nll in zip(np.asarray(logits), targets, token_nll(logits, targets), strict=True):
                if not np.isfinite(row).all():
                    raise engine.explained(LogitsError("the logits of a scored token are not finite"), judge)
                yield row.astype(np.float64), target, float(nll)


def take_reference(engine: Engine, judge: Judge, prompts: JsonPrompts | None = None) -> Reference:
    """Compute the reference with an engine whose knobs are lossless."""
    targets, nll, top1, lses, rests, ids, logits = [], [], [], [], [], [], []
    for row, target, cost in scored_rows(engine, judge):
        kept = likeliest(row)
        lse, rest = log_bucket(row, kept)
        targets.append(target)
        nll.append(cost)
        top1.append(row.argmax())
        lses.append(lse)
        rests.append(rest)
        ids.append(kept.astype(np.int32))
        logits.append(row[kept].astype(np.float32))
    return Reference(
        identity=_identity(engine.checkpoint, judge, prompts),
        mode=engine.mode,
        vocab=len(row),
        targets=np.array(targets, np.int32),
        nll=np.array(nll),
        top1=np.array(top1, np.int32),
        lse=np.array(lses),
        rest=np.array(rests),
        ends=np.cumsum([len(kept) for kept in ids]),
        ids=np.concatenate(ids),
        logits=np.concatenate(logits),
        json_valid=prompts.valid(engine.generate) if prompts else np.zeros(0, bool),
        origin="computed now",
    )


def reference_for(checkpoint: Checkpoint, judge: Judge, prompts: JsonPrompts | None = None) -> Reference:
    """Return the reference of a checkpoint, from the cache folder or computed now in a child process and stored there.

    A file that is damaged or belongs to something else is computed again; `origin` gives the reason.
    """
    file, identity = reference_file(checkpoint, judge, prompts), _identity(checkpoint, judge, prompts)
    origin = "computed now"
    if file.exists():
        try:
            return Reference.read(file, identity)
        except HeadraceError as e:
            origin = f"computed again, because {e}"
    compute_reference(checkpoint, judge, prompts)
    return dataclasses.replace(Reference.read(file, identity), origin=origin)


def compute_reference(checkpoint: Checkpoint, judge: Judge, prompts: JsonPrompts | None = None) -> None:
    """Compute the reference in a child process and store it, so that this process's peak memory does not rise."""
    request = {
        "checkpoint": str(checkpoint.path),
        "trust_code": checkpoint.trust_code,
        "texts": judge.as_lists(),
        "prompts": [prompts.max_tokens, prompts.prompts] if prompts else None,
    }
    compute_apart("the reference", "engine.cli.offline", "reference", given=to_json(request))


def reference_file(checkpoint: Checkpoint, judge: Judge, prompts: JsonPrompts | None = None) -> Path:
    """Return the path in the cache folder for the reference of this checkpoint, judge and prompts."""
    digest = hashlib.sha256(_identity(checkpoint, judge, prompts).encode()).hexdigest()[:16]
    return cached_file(f"reference-{checkpoint.fingerprint}-{digest}.npz")


def reference_knobs(checkpoint: Checkpoint) -> Knobs:
    """Return knobs that keep every expert resident if memory allows, else the largest cache that fits; both are exact."""
    need = weights_of(checkpoint, Knobs())
    cache_gb = cache_within(need, ROOM * memory_bytes() / GB - need.resident_gb)
    return Knobs() if cache_gb == need.all_experts_gb else Knobs(cache_gb=cache_gb)


def _identity(checkpoint: Checkpoint, judge: Judge, prompts: JsonPrompts | None) -> str:
    """Return everything that the reference depends on, as JSON. The judge's fingerprint includes the metric's version."""
    return to_json({
        "format": FORMAT, "tail": TAIL, "most": MOST, "model": checkpoint.fingerprint, "judge": judge.fingerprint,
        "prompts": prompts.fingerprint if prompts else None, "arithmetic": f"{compute_dtype()} {backend()}",
        "mlx": version("mlx"), "mlx_lm": version("mlx-lm"),
    })  # fmt: skip
