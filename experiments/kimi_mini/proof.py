"""Proof that kimi_mini is a model: recompute its card's figures from the committed files, exit 1 if a bar is missed.

Everything runs on the stock `mlx_lm.load` in float32. Held-out text is scored in windows of 512 tokens that advance by
384, so each token is scored once and sees at least 128 tokens; end-of-text tokens count as cost, not as bytes.
Two CPU cores take about a minute for 30 kB, so `--bytes` limits the text to windows spread evenly over it; `xz` always
gets the whole held-out text, and expert loads are judged from 50 kB on.

    python -m experiments.kimi_mini.proof                        # 60 kB, about three minutes
    python -m experiments.kimi_mini.proof --bytes 2000000        # the whole held-out text
    python -m experiments.kimi_mini.proof --bits                 # also bits -> quality on 20 kB, 6 minutes more
    python -m experiments.kimi_mini.proof --write-trace          # also rewrite routing_trace.parquet
"""

import argparse
import json
import lzma
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlx_lm.sample_utils import make_sampler

from .corpus import DOCUMENT_END
from .routing import expert_loads, lru_hit_rate, record
from .train import named_arrays

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoint"
HELD_OUT = HERE / "heldout.txt.xz"
TRACE = HERE / "routing_trace.parquet"
WINDOW, STRIDE = 512, 384
TRACE_TOKENS = 4096
PROMPTS = ("The CREATE INDEX statement", "import asyncio\n\nasync def main():\n", "1:1 And it came to pass")


def load() -> tuple[nn.Module, Any]:
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))[:2]
    model.set_dtype(mx.float32)  # bfloat16 accumulates in bfloat16 on CPUs
    return model, tokenizer


def held_out_documents() -> list[str]:
    return lzma.decompress(HELD_OUT.read_bytes()).decode().split(DOCUMENT_END)


def xz_bits_a_byte(documents: list[str]) -> float:
    text = "".join(documents).encode()
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(text)


def token_stream(tokenizer: Any, documents: list[str]) -> np.ndarray:
    """An end-of-text before the first document and after each one."""
    end = tokenizer.eos_token_id
    return np.array([end, *(t for text in documents for t in (*tokenizer.encode(text, add_special_tokens=False), end))])


def token_bytes(tokenizer: Any) -> np.ndarray:
    """Bytes of text that each token stands for: byte-level BPE spells a byte as one character, end-of-text as none."""
    lengths = np.zeros(len(tokenizer.get_vocab()), dtype=np.int64)
    for text, token in tokenizer.get_vocab().items():
        lengths[token] = 0 if token in tokenizer.all_special_ids else len(text)
    return lengths


def windows(stream: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """(inputs and targets [n + 1], how many of its last targets to score); every target is scored once."""
    parts, scored = [], 1
    while scored < len(stream):
        begin = max(0, min(scored - (WINDOW - STRIDE), len(stream) - 1 - WINDOW))
        window = stream[begin : begin + WINDOW + 1]
        parts.append((window, begin + len(window) - scored))
        scored = begin + len(window)
    return parts


def spread(parts: list[tuple[np.ndarray, int]], share: float) -> list[tuple[np.ndarray, int]]:
    """About `share` of the windows, evenly over the text: topics differ, so a beginning would not be a fair sample."""
    count = min(len(parts), max(1, round(len(parts) * share)))
    return [parts[i] for i in np.linspace(0, len(parts) - 1, count).round().astype(int)]


def log_probabilities(model: nn.Module, parts: list[tuple[np.ndarray, int]]) -> Iterator[tuple[mx.array, np.ndarray]]:
    """(log-probabilities [n, vocabulary], targets [n]) of the scored targets of each window."""
    for window, count in parts:
        logits = model(mx.array(window[None, :-1]))[0, -count:].astype(mx.float32)
        yield logits - mx.logsumexp(logits, axis=-1, keepdims=True), window[-count:]


def total(values: mx.array) -> float:
    return float(values.sum().item())  # type: ignore[arg-type]  # a real number here


def nats_of(logp: mx.array, targets: np.ndarray) -> float:
    return -total(mx.take_along_axis(logp, mx.array(targets)[:, None], axis=-1))


def recorded_routing(model: nn.Module, parts: list[tuple[np.ndarray, int]]) -> tuple[float, np.ndarray, np.ndarray]:
    """(total nats, experts [tokens, layers, k], gate weights alike) of the scored tokens, in order."""
    recorders = record(model)
    nats, experts, weights = 0.0, [], []
    for logp, targets in log_probabilities(model, parts):
        nats += nats_of(logp, targets)
        taken = [recorder.take() for recorder in recorders]
        experts.append(np.stack([ids[-len(targets) :] for ids, _ in taken], axis=1))
        weights.append(np.stack([gate[-len(targets) :] for _, gate in taken], axis=1))
    for layer in model.layers:
        if "gate" in layer.mlp:
            layer.mlp.gate = layer.mlp.gate.gate
    return nats, np.concatenate(experts), np.concatenate(weights)


def write_trace(path: Path, experts: np.ndarray, weights: np.ndarray, config: dict[str, Any]) -> None:
    _, layers, top_k = experts.shape
    order = np.argsort(-weights, axis=-1, kind="stable")  # rank 0 is the expert with the largest gate weight
    experts, weights = np.take_along_axis(experts, order, -1), np.take_along_axis(weights, order, -1)
    token, layer, rank = np.indices(experts.shape)
    columns = {
        "token": token.astype(np.int32).ravel(),
        "phase": pa.array(["decode"]).dictionary_encode().take(pa.array(np.zeros(experts.size, np.int32))),
        "layer": (layer + config["first_k_dense_replace"]).astype(np.int16).ravel(),
        "rank": rank.astype(np.int16).ravel(),
        "expert": experts.astype(np.int16).ravel(),
        "gate_weight": weights.astype(np.float32).ravel(),
    }
    metadata = {
        "model": "kimi_mini",
        "num_experts": str(config["n_routed_experts"]),
        "num_layers": str(layers),
        "top_k": str(top_k),
        "source": "held-out text, teacher-forced in windows of 512 tokens, experiments/kimi_mini/proof.py",
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, compression="zstd", compression_level=19)


def read_trace(path: Path = TRACE) -> tuple[np.ndarray, int]:
    """(routing [tokens, layers, k], experts a layer) of a trace file."""
    table = pq.read_table(path)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    shape = (-1, int(metadata["num_layers"]), int(metadata["top_k"]))
    return table["expert"].to_numpy().reshape(shape), int(metadata["num_experts"])


def round_trip(weight: mx.array, bits: int) -> mx.array:
    return mx.dequantize(*mx.quantize(weight, group_size=64, bits=bits), group_size=64, bits=bits)


def bits_table(model: nn.Module, parts: list[tuple[np.ndarray, int]]) -> list[tuple[str, float, float, float]]:
    """(bits of the routed experts, perplexity, mean KL in nats from the reference, share of top-1 flips)."""
    experts = [(name, weight) for name, weight in named_arrays(model) if ".switch_mlp." in name]
    reference = [logp for logp, _ in log_probabilities(model, parts)]
    mx.eval(reference)
    rows = []
    for bits in (None, 8, 6, 4, 3, 2):
        model.load_weights([(name, w if bits is None else round_trip(w, bits)) for name, w in experts], strict=False)
        nats = divergence = flips = 0.0
        for (logp, targets), exact in zip(log_probabilities(model, parts), reference, strict=True):
            nats += nats_of(logp, targets)
            divergence += total(mx.exp(exact) * (exact - logp))
            flips += total(mx.argmax(logp, axis=-1) != mx.argmax(exact, axis=-1))
        scored = sum(count for _, count in parts)
        rows.append((str(bits or "bf16"), math.exp(nats / scored), divergence / scored, flips / scored))
    model.load_weights(experts, strict=False)
    return rows


def sample(model: nn.Module, tokenizer: Any, prompt: str, tokens: int = 130) -> str:
    """A document that begins with `prompt`, drawn at temperature 0.7 with a fixed seed."""
    mx.random.seed(7)
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    sampler = make_sampler(temp=0.7, top_p=0.95)
    drawn = mlx_lm.stream_generate(model, tokenizer, [tokenizer.eos_token_id, *ids], max_tokens=tokens, sampler=sampler)
    return tokenizer.decode(ids + [response.token for response in drawn])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=60_000, help="held-out text to score")
    parser.add_argument("--bits", action="store_true")
    parser.add_argument("--write-trace", action="store_true")
    arguments = parser.parse_args()

    config = json.loads((CHECKPOINT / "config.json").read_text())
    model, tokenizer = load()
    documents = held_out_documents()
    stream = token_stream(tokenizer, documents)
    parts = spread(windows(stream), arguments.bytes / sum(len(text.encode()) for text in documents))
    text_bytes = sum(token_bytes(tokenizer)[window[-count:]].sum() for window, count in parts)
    nats, experts, _ = recorded_routing(model, parts)
    if arguments.write_trace:
        write_trace(TRACE, *recorded_routing(model, windows(stream[: TRACE_TOKENS + 1]))[1:], config)
    routing, per_layer = read_trace()

    xz = xz_bits_a_byte(documents)
    bits_a_byte = nats / math.log(2) / text_bytes
    shards = [file.stat().st_size for file in CHECKPOINT.glob("*.safetensors")]
    parameters = sum(weight.size for _, weight in named_arrays(model))
    moe_layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
    # Routing follows the topic: a smaller sample lacks some experts' topics and says nothing about dead experts.
    least_load = 0.1 if text_bytes >= 50_000 else None
    bars = [  # what, measured, format, least, most
        ("parameters, M", parameters / 1e6, ".2f", 15, 30),
        ("MoE layers", moe_layers, "d", 6, None),
        ("routed experts a layer", config["n_routed_experts"], "d", 48, None),
        ("top-k", config["num_experts_per_tok"], "d", 4, None),
        ("vocabulary", config["vocab_size"], "d", 4000, 8192),
        ("largest shard, MB", max(shards) / 1e6, ".2f", None, 16),
        ("checkpoint folder, MB", sum(f.stat().st_size for f in CHECKPOINT.iterdir()) / 1e6, ".2f", None, 48),
        (f"bits per byte, held out, {text_bytes / 1e3:.0f} kB", bits_a_byte, ".3f", None, 0.75 * xz),
        ("  against xz -9e on all held-out text", bits_a_byte / xz, ".3f", None, 0.75),
        ("perplexity a token", math.exp(nats / len(experts)), ".2f", None, None),
        ("least loaded expert, % of its layer", 100 * expert_loads(experts, per_layer).min(), ".2f", least_load, None),
        ("LRU hit rate at 25 % of experts, trace", lru_hit_rate(routing, per_layer // 4), ".3f", 0.45, 0.85),
    ]
    print(f"| what | measured | required |\n|---|---|---|\n| xz -9e, bits per byte, all held-out text | {xz:.3f} | |")
    missed = 0
    for what, measured, style, least, most in bars:
        limits = [f"{sign} {limit:.4g}" for sign, limit in ((">=", least), ("<=", most)) if limit is not None]
        met = (least is None or measured >= least) and (most is None or measured <= most)
        missed += not met
        print(f"| {what} | {measured:{style}} | {' and '.join(limits)}{'' if met else ' MISSED'} |")
    if arguments.bits:
        print("\n| routed experts | perplexity | KL, nats | top-1 flips, % |\n|---|---|---|---|")
        for bits, perplexity, divergence, flips in bits_table(model, spread(parts, 20_000 / text_bytes)):
            print(f"| {bits} | {perplexity:.3f} | {divergence:.5f} | {100 * flips:.2f} |", flush=True)
    for prompt in PROMPTS:
        print(f"\nSample:\n{sample(model, tokenizer, prompt)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
