"""Train kimi_mini: mlx-lm's deepseek_v3 model, the text model of Kimi K2 and K2.5, at 23 M parameters, in MLX alone.

Weights are kept in float32 and rounded to bfloat16 in each step, so what is saved is what was trained. Balance is kept
without an auxiliary loss (DeepSeek-V3, arXiv 2412.19437): after each step the score-correction bias of an expert moves
by `--bias-speed` towards the mean load, slower as the learning rate falls. A small locality loss does what scale does
in large models: it asks that a layer's router scores, less their means, correlate from one token to the next by at
least `--locality-target`, and costs nothing beyond. Without that limit the routing collapses to one choice for all.

The schedule runs on the clock (`--minutes`), so the learning rate always reaches zero. About a quarter of an hour on
one data-centre GPU; on a CPU only `--toy` is of use. Also writes training_log.csv beside the checkpoint.

    python -m experiments.kimi_mini.train --corpus corpus --minutes 12.5 --out checkpoint
    python -m experiments.kimi_mini.train --corpus corpus --minutes 1 --out toy --toy --batch 8 --context 64 \\
        --dtype float32
"""

import argparse
import csv
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import deepseek_v3

from .modules import moe_layers, plain_attention, training_model
from .optimiser import is_matrix, rate_at, updated
from .routing import expert_loads, lru_hit_rate
from .save import save_checkpoint

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "kimi_k2",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 7,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "torch_dtype": "bfloat16",
}
TOY = CONFIG | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "n_routed_experts": 8,
    "num_attention_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


@dataclass(frozen=True)
class Recipe:
    batch: int = 120  # sequences a step
    context: int = 512  # tokens a sequence
    learning_rate: float = 2.5e-3
    warmup_share: float = 0.02  # of the time
    weight_decay: float = 0.1
    bias_speed: float = 6e-3  # of the score-correction bias, a step, at the peak learning rate
    locality: float = 0.05  # weight of the locality loss
    locality_target: float = 0.55  # neighbour correlation beyond which a layer pays nothing
    capacity_factor: float = 1.5  # an expert batch holds this many times the mean load; what is beyond is dropped
    dtype: str = "bfloat16"  # of the forward and backward pass
    seed: int = 0

    def model(self, config: dict[str, Any]) -> nn.Module:
        return training_model(config, self.capacity_factor, getattr(mx, self.dtype))


def named_arrays(model: nn.Module) -> list[tuple[str, mx.array]]:
    return tree_flatten(model.parameters())  # type: ignore[return-value]  # typed for every kind of tree


def initial_parameters(model: nn.Module, seed: int) -> dict[str, mx.array]:
    key = mx.random.key(seed)
    depth = len(model.layers)
    parameters = {}
    for name, array in named_arrays(model):
        key, own = mx.random.split(key)
        if name.endswith("e_score_correction_bias"):
            continue
        if array.ndim == 1:
            parameters[name] = mx.ones(array.shape)
        else:
            scale = 0.02 if "embed_tokens" in name or "lm_head" in name else 0.6 / math.sqrt(array.shape[-1])
            if "o_proj" in name or "down_proj" in name:  # what writes to the residual stream starts small
                scale /= math.sqrt(2 * depth)
            parameters[name] = mx.random.normal(array.shape, scale=scale, key=own)
    return parameters


def rounded(name: str, weight: mx.array, dtype: mx.Dtype) -> mx.array:
    return weight if "embed_tokens" in name else weight.astype(dtype)


def forward(
    model: nn.Module, parameters: dict[str, mx.array], biases: mx.array, tokens: mx.array, recipe: Recipe
) -> tuple[mx.array, ...]:
    """(mean nats a token, neighbour correlation [layers], pairs an expert [layers, experts], ids [B, L, layers, k])."""
    dtype = getattr(mx, recipe.dtype)
    model.update(tree_unflatten([(name, rounded(name, weight, dtype)) for name, weight in parameters.items()]))
    layers = moe_layers(model)
    for layer, bias in zip(layers, biases, strict=True):
        layer.gate.e_score_correction_bias = bias
    logits = model(tokens[:, :-1]).astype(mx.float32)
    nats = nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")
    correlation = mx.stack([neighbour_correlation(layer.gate._scores) for layer in layers])
    counts = mx.stack([layer.switch_mlp._counts for layer in layers])
    chosen = mx.stack([layer.switch_mlp._chosen.astype(mx.int32) for layer in layers], axis=2)
    return nats, correlation, counts, chosen


def neighbour_correlation(scores: mx.array) -> mx.array:
    """Mean correlation over experts of what the router scores of neighbouring tokens have beyond each expert's mean.

    Neither smaller scores nor constant offsets between experts, which the balancing bias cancels, gain anything."""
    centred = scores - scores.mean(axis=(0, 1))
    unit = centred * mx.rsqrt((centred * centred).sum(axis=-1, keepdims=True) + 1e-6)
    return (unit[:, 1:] * unit[:, :-1]).sum(axis=-1).mean()


def make_step(model: nn.Module, recipe: Recipe) -> Any:
    """step(state, tokens, rate) -> (state, figures), compiled. State is a dict of dicts of arrays."""

    def loss(parameters: dict[str, mx.array], biases: mx.array, tokens: mx.array) -> Any:
        nats, correlation, counts, _ = forward(model, parameters, biases, tokens, recipe)
        jumps = mx.maximum(recipe.locality_target - correlation, 0).mean()
        return nats + recipe.locality * jumps, (nats, correlation.mean(), counts)

    def step(state: dict[str, Any], tokens: mx.array, rate: mx.array) -> Any:
        (_, figures), gradients = mx.value_and_grad(loss)(state["weight"], state["bias"], tokens)
        norm = mx.sqrt(sum((g * g).sum() for g in gradients.values()))
        clip = mx.minimum(1.0, 1.0 / (norm + 1e-6))
        count = state["count"] + 1
        new: dict[str, Any] = {"weight": {}, "first": {}, "second": {}, "count": count}
        for name, weight in state["weight"].items():
            moments = state["first"][name], state["second"][name]
            new["weight"][name], new["first"][name], new["second"][name] = updated(
                name, weight, gradients[name] * clip, moments, count, rate, recipe.weight_decay
            )
        nats, correlation, counts = figures
        # The bias is balanced with the learning rate: it must stand still when the weights do.
        speed = recipe.bias_speed * rate / recipe.learning_rate
        load = counts.astype(mx.float32)
        new["bias"] = state["bias"] + speed * mx.sign(load.mean(axis=1, keepdims=True) - load)
        capacity = recipe.capacity_factor * load.mean(axis=1, keepdims=True)
        dropped = mx.maximum(load - capacity, 0).sum() / load.sum()
        return new, (nats, correlation, dropped, norm)

    return mx.compile(step)


def initial_state(model: nn.Module, config: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    weight = initial_parameters(model, recipe.seed)
    scalar = mx.zeros(1)  # AdamW's second moment is not kept for Muon's matrices
    return {
        "weight": weight,
        "first": {name: mx.zeros_like(w) for name, w in weight.items()},
        "second": {name: scalar if is_matrix(name, w) else mx.zeros_like(w) for name, w in weight.items()},
        "bias": mx.zeros((len(moe_layers(model)), config["n_routed_experts"])),
        "count": mx.array(0.0),
    }


def batches(tokens: np.ndarray, recipe: Recipe) -> Any:
    """Endless [batch, context + 1] windows: each pass cuts the stream at a new offset and shuffles the windows."""
    rng = np.random.default_rng(recipe.seed)
    while True:
        starts = np.arange(rng.integers(recipe.context), len(tokens) - recipe.context - 1, recipe.context)
        rng.shuffle(starts)
        for begin in range(0, len(starts) - recipe.batch + 1, recipe.batch):
            rows = starts[begin : begin + recipe.batch, None] + np.arange(recipe.context + 1)
            yield mx.array(tokens[rows].astype(np.int32))


def make_evaluate(model: nn.Module, recipe: Recipe, held_out: np.ndarray, held_out_bytes: int) -> Any:
    """evaluate(state) -> (bits per byte, least share of a layer's tokens an expert gets, LRU hit rate at 25 %)."""
    length = min(recipe.context, len(held_out) // recipe.batch - 1)
    windows = mx.array(held_out[: recipe.batch * length + 1].astype(np.int32))
    rows = mx.arange(recipe.batch)[:, None] * length + mx.arange(length + 1)
    bytes_a_token = held_out_bytes / len(held_out)

    @mx.compile
    def run(weight: dict[str, mx.array], bias: mx.array) -> Any:
        nats, _, _, chosen = forward(model, weight, bias, windows[rows], recipe)
        return nats, chosen

    def evaluate(state: dict[str, Any]) -> tuple[float, float, float]:
        nats, chosen = run(state["weight"], state["bias"])
        routing = np.array(chosen).reshape(-1, *chosen.shape[2:])
        experts = state["bias"].shape[1]
        hits = lru_hit_rate(routing[:8192], experts // 4)
        return nats.item() / math.log(2) / bytes_a_token, float(expert_loads(routing, experts).min()), hits

    return evaluate


def train(
    config: dict[str, Any],
    recipe: Recipe,
    tokens: np.ndarray,
    held_out: tuple[np.ndarray, int],
    minutes: float,
    out: Path,
    log_every_s: float = 15.0,
) -> list[dict[str, float]]:
    """Train for `minutes` of wall clock, write the checkpoint and training_log.csv into `out`, return the log.

    held_out: (tokens, bytes of the text they stand for).
    """
    deepseek_v3.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    model = recipe.model(config)
    state = initial_state(model, config, recipe)
    step, evaluate = make_step(model, recipe), make_evaluate(model, recipe, *held_out)
    data = batches(tokens, recipe)
    log: list[dict[str, float]] = []
    out.mkdir(parents=True, exist_ok=True)
    state, figures = step(state, next(data), mx.array(0.0))  # compile before the clock starts
    mx.eval(state, figures)
    start = last = time.monotonic()
    steps = logged_steps = 0
    running = True
    while running:
        share = (time.monotonic() - start) / 60 / minutes
        state, figures = step(state, next(data), mx.array(rate_at(share, recipe.learning_rate, recipe.warmup_share)))
        mx.async_eval(state, figures)
        steps += 1
        if steps % 4 == 0:
            mx.eval(figures)  # keep the queue short, so that the clock means something
        running = share < 1.0
        if not running or time.monotonic() - last > log_every_s:
            nats, correlation, dropped, norm = (figure.item() for figure in figures)
            seconds = time.monotonic() - last
            bits, least, hits = evaluate(state)
            row = {
                "minutes": (time.monotonic() - start) / 60,
                "step": steps,
                "tokens_m": steps * recipe.batch * recipe.context / 1e6,
                "tokens_per_s": (steps - logged_steps) * recipe.batch * recipe.context / seconds,
                "train_nats_per_token": nats,
                "heldout_bits_per_byte": bits,
                "min_expert_load": least,
                "lru_hit_25": hits,
                "neighbour_correlation": correlation,
                "dropped": dropped,
                "gradient_norm": norm,
                "peak_gb": mx.get_peak_memory() / 1e9,
            }
            print(" ".join(f"{name}={value:.4g}" for name, value in row.items()), flush=True)
            log.append(row)
            last, logged_steps = time.monotonic(), steps
    save_checkpoint(out, state["weight"], state["bias"], config)
    with (out / "training_log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, log[0].keys())
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in log)
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with tokens.npy and heldout_tokens.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--toy", action="store_true", help="a toy model in float32, for a CPU")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{name: arguments[name] for name in asdict(Recipe())})
    tokens = np.load(arguments["corpus"] / "tokens.npy", mmap_mode="r")
    held_out = np.load(arguments["corpus"] / "heldout_tokens.npz")
    print(json.dumps(asdict(recipe)), flush=True)
    config = TOY if arguments["toy"] else CONFIG
    train(config, recipe, tokens, (held_out["tokens"], int(held_out["bytes"])), arguments["minutes"], arguments["out"])


if __name__ == "__main__":
    main()
