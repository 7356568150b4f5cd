"""Proof that kimi_mini is a model: recompute its card's figures from the committed files, exit 1 if a bar is missed.

Everything runs on the stock `mlx_lm.load` in float32. Held-out text is scored in windows of 512 tokens that advance by 384,
so each token is scored once and has at least 128 tokens before it; the end-of-text tokens count as cost, not as bytes.
Two CPU cores score about 250 tokens a second, so `--bytes` limits the text (its documents stand in hash order: a beginning
is a fair sample); `xz` always gets the whole held-out text, where it does better.

    python -m experiments.kimi_mini.proof                        # 60 kB, about three minutes
    python -m experiments.kimi_mini.proof --bytes 2000000        # the whole held-out text
    python -m experiments.kimi_mini.proof --bits                 # also bits -> perplexity, KL, top-1 flips on 20 kB
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
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchGLU
from mlx_lm.sample_utils import make_sampler

from .corpus import DOCUMENT_END
from .routing import expert_loads, lru_hit_rate, record

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoint"
HELD_OUT = HERE / "heldout.txt.xz"
TRACE = HERE / "routing_trace.parquet"
WINDOW, STRIDE = 512, 384
TRACE_TOKENS = 4096
PROMPT = "The following example shows how to"


def load() -> tuple[nn.Module, Any]:
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))[:2]
    model.set_dtype(mx.float32)  # bfloat16 accumulates in bfloat16 on CPUs
    return model, tokenizer


def held_out_documents() -> list[str]:
    return lzma.decompress(HELD_OUT.read_bytes()).decode().split(DOCUMENT_END)


def token_stream(tokenizer: Any, documents: list[str], limit_bytes: int) -> tuple[np.ndarray, int]:
    """(tokens, bytes of text they stand for): an end-of-text before the first document and after each one."""
    end = tokenizer.eos_token_id
    stream, size = [end], 0
    for text in documents:
        if size >= limit_bytes:
            break
        text = text.encode()[: limit_bytes - size].decode("utf-8", "ignore")
        stream += [*tokenizer.encode(text, add_special_tokens=False), end]
        size += len(text.encode())
    return np.array(stream), size


def windows(stream: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """(inputs and targets [n + 1], how many of its last targets to score); every target is scored once."""
    scored = 1
    while scored < len(stream):
        begin = max(0, min(scored - (WINDOW - STRIDE), len(stream) - 1 - WINDOW))
        window = stream[begin : begin + WINDOW + 1]
        yield window, begin + len(window) - scored
        scored = begin + len(window)


def log_probabilities(model: nn.Module, stream: np.ndarray) -> Iterator[tuple[mx.array, np.ndarray]]:
    """(log-probabilities [n, vocabulary], targets [n]), each target of the stream once."""
    for window, count in windows(stream):
        logits = model(mx.array(window[None, :-1]))[0, -count:].astype(mx.float32)
        yield logits - mx.logsumexp(logits, axis=-1, keepdims=True), window[-count:]


def total_nats(model: nn.Module, stream: np.ndarray) -> float:
    return sum(-mx.take_along_axis(lp, mx.array(t)[:, None], axis=-1).sum().item() for lp, t in log_probabilities(model, stream))


def recorded_routing(model: nn.Module, stream: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(total nats, experts [tokens, layers, k], gate weights alike): the routing of each scored token once, in order."""
    recorders = record(model)
    nats, experts, weights = 0.0, [], []
    for logp, targets in log_probabilities(model, stream):
        nats -= mx.take_along_axis(logp, mx.array(targets)[:, None], axis=-1).sum().item()
        taken = [recorder.take() for recorder in recorders]
        experts.append(np.stack([ids[-len(targets) :] for ids, _ in taken], axis=1))
        weights.append(np.stack([gate[-len(targets) :] for _, gate in taken], axis=1))
    for layer in model.layers:
        if "gate" in layer.mlp:
            layer.mlp.gate = layer.mlp.gate.gate
    return nats, np.concatenate(experts), np.concatenate(weights)


def write_trace(path: Path, experts: np.ndarray, weights: np.ndarray, config: dict[str, Any]) -> None:
    tokens, layers, top_k = experts.shape
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


def quantized_round_trip(weights: dict[str, mx.array], bits: int) -> list[tuple[str, mx.array]]:
    return [(name, mx.dequantize(*mx.quantize(w, group_size=64, bits=bits), group_size=64, bits=bits)) for name, w in weights.items()]


def bits_table(model: nn.Module, stream: np.ndarray) -> list[tuple[str, float, float, float]]:
    """(bits of the routed experts, perplexity, mean KL in nats from the reference, share of top-1 flips)."""
    switches = [(name, m) for name, m in model.named_modules() if isinstance(m, SwitchGLU)]
    experts = {f"{name}.{key}": w for name, m in switches for key, w in tree_flatten(m.parameters())}
    reference = [logp for logp, _ in log_probabilities(model, stream)]
    mx.eval(reference)
    rows = []
    for bits in (None, 8, 6, 4, 3, 2):
        model.load_weights(list(experts.items()) if bits is None else quantized_round_trip(experts, bits), strict=False)
        nats = divergence = flips = 0.0
        for (logp, targets), exact in zip(log_probabilities(model, stream), reference, strict=True):
            nats -= mx.take_along_axis(logp, mx.array(targets)[:, None], axis=-1).sum().item()
            divergence += (mx.exp(exact) * (exact - logp)).sum().item()
            flips += (mx.argmax(logp, axis=-1) != mx.argmax(exact, axis=-1)).sum().item()
        scored = len(stream) - 1
        rows.append((str(bits or "bf16"), math.exp(nats / scored), divergence / scored, flips / scored))
    model.load_weights(list(experts.items()), strict=False)
    return rows


def sample(model: nn.Module, tokenizer: Any, prompt: str = PROMPT, tokens: int = 160) -> str:
    mx.random.seed(7)
    return prompt + mlx_lm.generate(model, tokenizer, prompt, max_tokens=tokens, sampler=make_sampler(temp=0.6, top_p=0.95))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=60_000, help="held-out text to score")
    parser.add_argument("--bits", action="store_true")
    parser.add_argument("--write-trace", action="store_true")
    arguments = parser.parse_args()

    config = json.loads((CHECKPOINT / "config.json").read_text())
    model, tokenizer = load()
    documents = held_out_documents()
    stream, text_bytes = token_stream(tokenizer, documents, arguments.bytes)
    nats, experts, weights = recorded_routing(model, stream)
    if arguments.write_trace:
        write_trace(TRACE, experts[:TRACE_TOKENS], weights[:TRACE_TOKENS], config)
    routing, per_layer = read_trace()

    text = "".join(documents).encode()
    xz = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(text)
    bits_a_byte = nats / math.log(2) / text_bytes
    shards = [file.stat().st_size for file in CHECKPOINT.glob("*.safetensors")]
    parameters = sum(array.size for _, array in tree_flatten(model.parameters()))
    moe_layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
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
        ("perplexity a token", math.exp(nats / (len(stream) - 1)), ".2f", None, None),
        ("least loaded expert, % of its layer", 100 * expert_loads(experts, per_layer).min(), ".2f", 0.1, None),
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
        for bits, perplexity, divergence, flips in bits_table(model, token_stream(tokenizer, documents, 20_000)[0]):
            print(f"| {bits} | {perplexity:.3f} | {divergence:.5f} | {100 * flips:.2f} |", flush=True)
    print(f"\nSample (temperature 0.6):\n{sample(model, tokenizer)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
