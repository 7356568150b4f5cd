"""bench bits: quality of bit plans at equal bytes, against uniform widths and random plans.

The benchmark measures perplexity and the KL divergence from the checkpoint as stored, on the evaluation texts. Every plan
is saved and loaded again, like a user's. Random plans show how much any choice matters.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.engine import Engine, load
from engine.knobs import BITS, GB, Knobs
from engine.measure.judge import Judge
from engine.plan.bits import BitsPlan, allocate, compute_plan, hot_share_for, widths
from engine.plan.bits_file import save_plan
from engine.plan.footprint import experts_gb
from engine.routing.profile import routing_profile


def bench_bits(
    model: Path, knobs: Knobs, judge: Judge, *, average_bits: list[float], draws: int, trust_code: bool = False
) -> dict[str, Any]:
    """Perplexity and KL of each way to assign bits at each budget (average bits), between `cold_bits` and `expert_bits`.
    `draws`: number of random plans."""
    source = Checkpoint.open(model, trust_code=trust_code)
    choices = _uniform(source, [*average_bits, knobs.cold_bits or 0, knobs.expert_bits or 0])
    for budget in average_bits:
        choices += _mixed(source, dataclasses.replace(knobs, hot_share=hot_share_for(source, knobs, budget)), draws)
    with load(model, trust_code=trust_code) as engine:
        texts = [np.array(engine.encode(text.prompt + text.continuation)) for text in judge.texts]
        reference = [log_softmax(engine.logits(ids)) for ids in texts]
        mode = engine.mode
    rows = [{"chosen_by": "as stored", "average_bits": engine.bits.average_bits, "gb": experts_gb(source, engine.bits),
             "perplexity": [perplexity(reference, texts)], "kl": [0.0], "plans": [engine.bits.fingerprint]}]  # fmt: skip
    _print(rows[0])
    for name, plans in choices:
        perplexities, kl = zip(*(_figures(source, plan, texts, reference) for plan in plans), strict=True)
        prints = [plan.fingerprint for plan in plans]
        row = {"chosen_by": name, "average_bits": plans[0].average_bits, "gb": experts_gb(source, plans[0]),
               "perplexity": list(perplexities), "kl": list(kl), "plans": prints}  # fmt: skip
        rows.append(row)
        _print(row)
    return {
        "bench": "bits", "model": source.name, "mode": mode, "eval_fingerprint": judge.fingerprint,
        "tokens": sum(map(len, texts)), "expert_bits": knobs.expert_bits, "cold_bits": knobs.cold_bits, "rows": rows,
    }  # fmt: skip


def _uniform(source: Checkpoint, average_bits: list[float]) -> list[tuple[str, list[BitsPlan]]]:
    """Plans with one width for all experts: the two widths, and each budget that is a width."""
    legal = BITS if source.levels is None else source.levels
    return [
        (f"uniform {bits}", [compute_plan(source, Knobs(expert_bits=bits))])
        for bits in legal
        if bits in average_bits and bits <= source.expert_bits
    ]


def _mixed(source: Checkpoint, knobs: Knobs, draws: int) -> list[tuple[str, list[BitsPlan]]]:
    """Plans at the budget of `knobs` in which random experts, or the most frequent ones, keep `expert_bits`."""
    low, high = widths(source, knobs.cold_bits), widths(source, knobs.expert_bits)
    weights = compute_plan(source, Knobs()).weights
    plans = []
    for seed in range(draws):
        chance = np.broadcast_to(np.random.default_rng(seed).random((*low.shape[:2], 1)), low.shape)
        plans.append(BitsPlan(allocate(low, high, weights, chance, knobs.resolved_hot_share), chance, weights))
    by_frequency = compute_plan(source, knobs, routing_profile(source))
    return [("random", plans), ("frequency", [by_frequency])]


def _figures(
    source: Checkpoint, plan: BitsPlan, texts: list[np.ndarray], reference: list[np.ndarray]
) -> tuple[float, float]:
    """Perplexity, and the mean over all tokens of KL(reference, plan) in nats."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.parquet"
        save_plan(file, plan, source, Knobs(), None)
        with load(source.path, Knobs(bits_plan=str(file))) as engine:
            return _compare(engine, texts, reference)


def _compare(engine: Engine, texts: list[np.ndarray], reference: list[np.ndarray]) -> tuple[float, float]:
    computed = [log_softmax(engine.logits(ids)) for ids in texts]
    kl = sum(float((np.exp(p) * (p - q)).sum(dtype=np.float64)) for p, q in zip(reference, computed, strict=True))
    return perplexity(computed, texts), kl / sum(map(len, texts))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def perplexity(log_probabilities: list[np.ndarray], texts: list[np.ndarray]) -> float:
    """Perplexity of the texts (token ids) under log-probabilities [tokens, vocabulary]; the first token is not scored."""
    pairs = zip(log_probabilities, texts, strict=True)
    nll = [-ll[np.arange(len(ids) - 1), ids[1:]] for ll, ids in pairs]
    return float(np.exp(np.concatenate(nll).mean(dtype=np.float64)))


def _print(row: dict[str, Any]) -> None:
    """Print a line of the Markdown table; before the first, its head."""
    if row["chosen_by"] == "as stored":
        print("| bits chosen by | average bits | MB | perplexity | KL, nats per token |\n|---|---|---|---|---|")
    cells = []
    for figures, digits in ((row["perplexity"], 2), (row["kl"], 4)):
        low, middle, high = np.quantile(figures, [0, 0.5, 1])
        spread = f" ({low:.{digits}f} .. {high:.{digits}f})" if len(figures) > 1 else ""
        cells.append(f"{middle:.{digits}f}{spread}")
    megabytes = row["gb"] * GB / 1e6
    print(f"| {row['chosen_by']} | {row['average_bits']:.3g} | {megabytes:.4g} | {' | '.join(cells)} |", flush=True)
