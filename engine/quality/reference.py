"""The reference: what the unchanged model says of every token, kept on disk in compressed form.

Of each scored token the likeliest entries are kept, as many as hold all but TAIL of the probability (at most MOST), and
the rest is one bucket. The Kullback-Leibler divergence of the kept form is a lower bound of the whole one, since putting
outcomes together cannot make two distributions easier to tell apart. How much it can lack is bounded as well: an entry of
the rest has at most the probability of the smallest kept one, and the divergence is convex, so that it is largest where
the rest lies in as few entries as that allows, those that the other model thinks least likely.

Kept entries are raw float32 logits beside their log-sum in float64: the same logits give a divergence of exactly 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.engine import Engine, load
from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.measure.judge import Judge, Text
from engine.measure.timed_pass import token_nll
from engine.model.backend import backend
from engine.plan.banks import compute_dtype, footprint
from engine.system.memory import memory_bytes
from engine.system.user_cache import cached_file, compute_apart, store_in_cache

from .json_prompts import JsonPrompts

FORMAT = 1  # raised when the file or what is in it changes its meaning
TAIL = 1e-3
MOST = 4096
ROOM = 0.8  # share of the memory that a reference may fill with weights


@dataclass(frozen=True)
class Reference:
    """A model's answers to a judge, of n scored tokens with k kept entries in all."""

    identity: str  # JSON: whose answers, to what, computed how; see `_identity`
    mode: str  # which path ran
    vocab: int
    targets: np.ndarray  # int32 [n]: the tokens that came
    nll: np.ndarray  # float64 [n], nats
    top1: np.ndarray  # int32 [n]
    lse: np.ndarray  # float64 [n]: log-sum-exp of the logits
    rest: np.ndarray  # float64 [n]: log-probability of all that is not kept; -inf if nothing is
    ends: np.ndarray  # int64 [n]: where each token's entries end
    ids: np.ndarray  # int32 [k], ascending within a token
    logits: np.ndarray  # float32 [k]
    json_valid: np.ndarray  # bool [prompts], empty without JSON prompts
    origin: str = "on file"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in memory."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def divergence(self, token: int, logits: np.ndarray) -> tuple[float, float]:
        """KL(reference || other), nats, of scored token number `token`, as bounds: no less than, no more than.

        `logits` [vocab] are the other model's, float64.
        """
        some = slice(self.ends[token - 1] if token else 0, self.ends[token])
        ids = self.ids[some]
        lse, rest = log_bucket(logits, ids)
        log_p = self.logits[some] - self.lse[token]
        kept = float(np.sum(np.exp(log_p) * (log_p - (logits[ids] - lse))))
        mine = self.rest[token]
        if mine == -np.inf:
            return kept, kept
        mass, largest = math.exp(mine), math.exp(log_p.min())
        log_q = np.delete(logits, ids) - lse
        count = min(int(mass / largest), len(log_q) - 1)
        least = np.partition(log_q, count)
        left = mass - count * largest
        tail = count * largest * math.log(largest) - largest * float(np.sum(least[:count]))
        tail += left * (math.log(left) - float(least[count])) if left > 0 else 0.0
        low = kept + mass * (mine - rest)
        return low, max(low, kept + tail)

    def to_bytes(self) -> bytes:
        """The file: a digest, then a compressed npz."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "origin"}
        arrays["ids"] = np.diff(self.ids, prepend=np.int32(0))
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        return hashlib.sha256(content.getvalue()).digest() + content.getvalue()

    @classmethod
    def read(cls, file: Path, identity: str) -> Reference:
        """The reference in `file`. Raises `HeadraceError` if it is damaged, or not the one of this identity."""
        try:
            content = file.read_bytes()
        except OSError as e:
            raise HeadraceError(f"{file} cannot be read ({e.strerror})") from e
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise HeadraceError(f"{file} is damaged")
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as stored:
            if stored["identity"].item() != identity:
                raise HeadraceError(f"{file} is of another model, text or version")
            arrays = {name: stored[name] if stored[name].ndim else stored[name].item() for name in stored.files}
        arrays["ids"] = np.cumsum(arrays["ids"], dtype=np.int32)
        return cls(**arrays)


def log_bucket(logits: np.ndarray, ids: np.ndarray) -> tuple[float, float]:
    """Log-sum-exp of `logits` [vocab], float64, and the log-probability of all entries but `ids`; -inf if there are none."""
    lse = log_sum_exp(logits)
    return lse, log_sum_exp(np.delete(logits, ids)) - lse


def log_sum_exp(logits: np.ndarray) -> float:
    """Of `logits` [any number], float64; -inf of none."""
    if not logits.size:
        return -math.inf
    top = float(logits.max())
    return top + math.log(float(np.sum(np.exp(logits - top))))


def likeliest(logits: np.ndarray, tail: float = TAIL, most: int = MOST) -> np.ndarray:
    """The fewest entries of `logits` [vocab], float64, that leave at most `tail` of the probability, but at most `most`:
    ids, ascending."""
    most = min(most, len(logits))
    top = np.argpartition(-logits, most - 1)[:most]
    top = top[np.argsort(-logits[top], kind="stable")]
    held = np.cumsum(np.exp(logits[top] - log_sum_exp(logits)))
    return np.sort(top[: int(np.searchsorted(held, 1 - tail)) + 1])


def scored_rows(engine: Engine, judge: Judge) -> Iterator[tuple[np.ndarray, int, float]]:
    """Of every scored token, in the order of `Engine.measure`: the logits before it, float64 [vocab], its id, and its
    negative log-likelihood, nats.

    Raises `HeadraceError` for logits that are not finite.
    """
    for passes in engine.teacher_forced(judge):
        for logits, targets in itertools.chain(*passes):
            for row, target, nll in zip(np.asarray(logits), targets, token_nll(logits, targets), strict=True):
                if not np.isfinite(row).all():
                    raise HeadraceError(f"{engine.checkpoint.path}: its logits are not finite with these knobs; try others")
                yield row.astype(np.float64), target, float(nll)


def take_reference(engine: Engine, judge: Judge, prompts: JsonPrompts | None = None) -> Reference:
    """The reference that an engine with lossless knobs gives."""
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
        json_valid=prompts.valid(engine) if prompts else np.zeros(0, bool),
        origin="computed now",
    )


def reference_for(checkpoint: Checkpoint, judge: Judge, prompts: JsonPrompts | None = None) -> Reference:
    """The reference of a checkpoint: from the cache folder, or computed now in a process of its own and kept there.

    A file that is damaged or another's is computed again; `origin` says so.
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
    """Compute the reference in a process of its own and keep it: this process's memory stays as it is."""
    request = {
        "checkpoint": str(checkpoint.path), "texts": [[t.name, t.kind, t.prompt, t.continuation] for t in judge.texts],
        "prompts": [prompts.max_tokens, prompts.prompts] if prompts else None,
    }  # fmt: skip
    compute_apart("the reference", "engine.quality.reference", given=json.dumps(request))


def reference_file(checkpoint: Checkpoint, judge: Judge, prompts: JsonPrompts | None = None) -> Path:
    """Where the reference of this checkpoint and judge is kept."""
    digest = hashlib.sha256(_identity(checkpoint, judge, prompts).encode()).hexdigest()[:16]
    return cached_file(f"reference-{checkpoint.fingerprint}-{digest}.npz")


def reference_knobs(checkpoint: Checkpoint) -> Knobs:
    """Everything resident if that fits into memory; else streamed with as large a cache as does, which gives the same."""
    need = footprint(checkpoint)
    room = ROOM * memory_bytes() / GB - need.resident_gb
    return Knobs() if room >= need.all_experts_gb else Knobs(cache_gb=max(room, need.one_token_gb))


def _identity(checkpoint: Checkpoint, judge: Judge, prompts: JsonPrompts | None) -> str:
    """All that the reference depends on. The judge's fingerprint has the version of the metric."""
    return json.dumps({
        "format": FORMAT, "tail": TAIL, "most": MOST, "model": checkpoint.fingerprint, "judge": judge.fingerprint,
        "prompts": prompts.fingerprint if prompts else None, "arithmetic": f"{compute_dtype()} {backend()}",
        "mlx": version("mlx"), "mlx_lm": version("mlx-lm"),
    })  # fmt: skip


def main() -> int:
    """The child of `reference_for`: reads the request, writes the file; 2 after an error, which is one line."""
    request = json.load(sys.stdin)
    judge = Judge(tuple(Text(*text) for text in request["texts"]))
    prompts = None
    if request["prompts"]:
        max_tokens, pairs = request["prompts"]
        prompts = JsonPrompts(max_tokens, tuple((examples, text) for examples, text in pairs))
    try:
        checkpoint = Checkpoint.open(request["checkpoint"])
        with load(checkpoint.path, reference_knobs(checkpoint)) as engine:
            store_in_cache(reference_file(checkpoint, judge, prompts), take_reference(engine, judge, prompts).to_bytes())
    except HeadraceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
