"""Quality: how far a model under its knobs is from the reference, on the evaluation texts and in JSON.

    from engine import Checkpoint, Judge, Knobs, load
    from engine.quality.quality import quality
    from engine.quality.reference import reference_for
    judge = Judge.load("my_text.txt")
    reference = reference_for(Checkpoint.open(path), judge)  # before loading, so that memory never holds two models
    with load(path, Knobs(expert_bits=2)) as engine:
        print(quality(engine, judge, reference).kl)

The passes are those of `Engine.measure` (prompts prefilled, continuations decoded token by token), so that a knob whose
effect depends on the cache has the same effect in both.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.engine import Engine
from engine.errors import HeadraceError
from engine.measure.judge import Judge
from engine.measure.measurement import perplexity
from engine.system.strict_json import from_json, refuse_not_finite

from .json_prompts import JsonPrompts
from .reference import Reference, scored_rows


@dataclass(frozen=True)
class Quality:
    """Figures of one pass over evaluation texts, beside the reference's. Means and shares cover all scored tokens.

    The standard errors treat the tokens as independent. `kl` is computed from the stored form of the reference; the exact
    divergence lies between `kl` and `kl_at_most`.
    """

    perplexity: float
    perplexity_se: float
    nll: float  # mean, nats per token
    scored_tokens: int
    kl: float  # mean of KL(reference || this), nats per token
    kl_se: float
    kl_at_most: float
    kl_p99: float  # 99th percentile over the tokens
    top1_flips: float  # share of tokens whose likeliest successor differs
    json_valid: float | None  # share of JSON prompts with a completed object; null without prompts
    json_prompts: int
    reference_perplexity: float
    reference_json_valid: float | None
    reference_model: str  # fingerprint of its checkpoint
    reference_mode: str
    judge: str  # fingerprint of the texts; figures of different texts are not comparable
    prompts: str | None  # fingerprint of the JSON prompts
    mode: str

    def __post_init__(self) -> None:
        """Raise `FigureError` for a figure that is not finite."""
        refuse_not_finite(vars(self), "the quality of this model", "the reference or this model is broken")

    def as_dict(self) -> dict[str, Any]:
        """Return name -> value, JSON-ready."""
        return dataclasses.asdict(self)


def quality(engine: Engine, judge: Judge, reference: Reference, prompts: JsonPrompts | None = None) -> Quality:
    """Score `judge`, then generate from `prompts`.

    Use a freshly loaded engine: lossy knobs that depend on the cache are affected by earlier computation. Raises
    `HeadraceError` if the reference belongs to other texts, another vocabulary or other prompts.
    """
    identity = from_json(reference.identity)
    fingerprint = prompts.fingerprint if prompts else None
    if (identity["judge"], identity["prompts"]) != (judge.fingerprint, fingerprint):
        raise HeadraceError("the reference belongs to other texts or JSON prompts; get it with reference_for")
    nll, low, high, flips = [], [], [], 0
    for token, (logits, target, cost) in enumerate(scored_rows(engine, judge)):
        if token >= len(reference.targets) or target != reference.targets[token] or len(logits) != reference.vocab:
            raise HeadraceError(
                f"{engine.checkpoint.path} splits the texts into other tokens than the reference's model; "
                "give a reference with the same tokenizer"
            )
        lower, upper = reference.divergence(token, logits)
        nll.append(cost)
        low.append(lower)
        high.append(upper)
        flips += int(logits.argmax()) != reference.top1[token]
    valid = prompts.valid(engine.generate) if prompts else np.zeros(0, bool)
    value, error = perplexity(np.array(nll))
    return Quality(
        perplexity=value,
        perplexity_se=error,
        nll=float(np.mean(nll)),
        scored_tokens=len(nll),
        kl=float(np.mean(low)),
        kl_se=float(np.std(low, ddof=1)) / math.sqrt(len(low)),
        kl_at_most=float(np.mean(high)),
        kl_p99=float(np.quantile(low, 0.99)),
        top1_flips=flips / len(nll),
        json_valid=float(valid.mean()) if prompts else None,
        json_prompts=len(valid),
        reference_perplexity=perplexity(reference.nll)[0],
        reference_json_valid=float(reference.json_valid.mean()) if prompts else None,
        reference_model=identity["model"],
        reference_mode=reference.mode,
        judge=judge.fingerprint,
        prompts=fingerprint,
        mode=engine.mode,
    )
