"""Train kimi_mini: mlx-lm's own deepseek_v3 model (Kimi K2's and K2.5's text model) at 23 M parameters, in MLX alone.

The model class is the one that serves; for training three of its modules are replaced, parameters unchanged:
the routed experts by a permutation into fixed-size expert batches (fast, static shapes, gathers only, also backward), the
gate by one that also remembers its scores, the embedding by one whose gradient is summed in float32. Weights are kept in
float32 and rounded to bfloat16 in each step, so what is saved is what was trained. Matrices are optimised by Muon with
the RMS-matched scale of "Muon is Scalable for LLM Training" (arXiv 2502.16982), as Kimi was; the rest by AdamW.
Balance is kept without an auxiliary loss (DeepSeek-V3, arXiv 2412.19437): after each step the score-correction bias of an
expert moves by `--bias-speed` towards the mean load. `--locality` adds 1 - the correlation of the router scores of
neighbouring tokens to the loss, so that a small cache of experts is worth as much as it is in large models.

The schedule runs on the clock (`--minutes`), so the learning rate always reaches zero. About a quarter of an hour on one
data-centre GPU; on a CPU only `--toy` is of use.

    python -m experiments.kimi_mini.train --corpus corpus --minutes 15 --out experiments/kimi_mini/checkpoint
    python -m experiments.kimi_mini.train --corpus corpus --toy --minutes 1 --out /tmp/toy
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
from mlx_lm.models.switch_layers import SwitchGLU

from .routing import expert_loads, lru_hit_rate

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
TOY = CONFIG | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 3,
                "n_routed_experts": 8, "num_attention_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
                "v_head_dim": 16}  # fmt: skip
SHARD_BYTES = 15_000_000


@dataclass(frozen=True)
class Recipe:
    batch: int = 120  # sequences a step
    context: int = 512  # tokens a sequence
    learning_rate: float = 2.5e-3
    warmup_share: float = 0.02  # of the time
    weight_decay: float = 0.1
    bias_speed: float = 6e-3
    locality: float = 0.05  # weight of the locality loss
    locality_target: float = 0.55  # neighbour correlation beyond which a layer pays nothing
    capacity_factor: float = 1.5  # an expert batch holds this many times the mean load; what is beyond is dropped
    dtype: str = "bfloat16"
    seed: int = 0


# --- the training-time modules -----------------------------------------------------------------------------------------


@mx.custom_function
def dispatch(x: mx.array, slot: mx.array, pair: mx.array, filled: mx.array) -> mx.array:
    """x [T, D] -> expert batches [E * C, D]: row s holds the token of routed pair `pair[s]`, or zero."""
    return mx.where(filled[:, None], x[pair // slot.shape[1]], 0)


@dispatch.vjp
def _dispatch_vjp(primals: Any, cotangent: mx.array, _: Any) -> Any:
    x, slot, pair, filled = primals
    kept = slot < pair.size
    rows = mx.where(kept[..., None], cotangent[mx.minimum(slot, pair.size - 1)], 0)
    return rows.astype(mx.float32).sum(axis=1).astype(x.dtype), mx.zeros_like(slot), mx.zeros_like(pair), mx.zeros_like(filled)


@mx.custom_function
def collect(rows: mx.array, slot: mx.array, pair: mx.array, filled: mx.array) -> mx.array:
    """Expert batches [E * C, D] -> [T, k, D]; a dropped pair gives zero."""
    kept = slot < pair.size
    return mx.where(kept[..., None], rows[mx.minimum(slot, pair.size - 1)], 0)


@collect.vjp
def _collect_vjp(primals: Any, cotangent: mx.array, _: Any) -> Any:
    rows, slot, pair, filled = primals
    back = mx.where(filled[:, None], cotangent.reshape(-1, rows.shape[-1])[pair], 0)
    return back, mx.zeros_like(slot), mx.zeros_like(pair), mx.zeros_like(filled)


class PermutedSwitchGLU(nn.Module):
    """mlx-lm's SwitchGLU, its weights taken over, as three batched matrix products over [experts, capacity, D]."""

    def __init__(self, switch: SwitchGLU, capacity_factor: float):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = switch.gate_proj, switch.up_proj, switch.down_proj
        self._capacity_factor = capacity_factor

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        experts, (*lead, k) = self.gate_proj.num_experts, indices.shape
        x, expert_of = x.reshape(-1, x.shape[-1]), indices.astype(mx.int32).reshape(-1)
        capacity = min(math.ceil(expert_of.size / experts * self._capacity_factor), expert_of.size // k)
        counts = (expert_of[:, None] == mx.arange(experts)).astype(mx.int32).sum(axis=0)
        first = mx.cumsum(counts) - counts
        order = mx.argsort(expert_of).astype(mx.int32)
        position = mx.argsort(order).astype(mx.int32) - first[expert_of]
        slot = mx.where(position < capacity, expert_of * capacity + position, experts * capacity).reshape(-1, k)
        column = mx.arange(capacity)
        filled = (column < counts[:, None]).reshape(-1)
        pair = order[mx.minimum(first[:, None] + column, expert_of.size - 1)].reshape(-1)
        rows = dispatch(x, slot, pair, filled).reshape(experts, capacity, -1)
        gate, up, down = (p.weight.swapaxes(-1, -2) for p in (self.gate_proj, self.up_proj, self.down_proj))
        rows = (nn.silu(rows @ gate) * (rows @ up)) @ down
        self._counts, self._chosen = counts, indices
        return collect(rows.reshape(experts * capacity, -1), slot, pair, filled).reshape(*lead, k, -1)


class ScoredGate(nn.Module):
    """mlx-lm's MoEGate in float32, remembering its scores for the locality loss."""

    def __init__(self, gate: deepseek_v3.MoEGate):
        super().__init__()
        self.weight, self.e_score_correction_bias = gate.weight, gate.e_score_correction_bias
        self._select = (gate.top_k, gate.n_group, gate.topk_group, gate.routed_scaling_factor, gate.norm_topk_prob)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        logits = x.astype(mx.float32) @ self.weight.astype(mx.float32).T
        self._scores = mx.sigmoid(logits)
        return deepseek_v3.group_expert_select(logits, self.e_score_correction_bias, *self._select)


class WideEmbedding(nn.Module):
    """The gradient of a frequent token sums thousands of rows: gather in float32, round after."""

    def __init__(self, embedding: nn.Embedding, dtype: mx.Dtype):
        super().__init__()
        self.weight, self._dtype = embedding.weight, dtype

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.weight[tokens].astype(self._dtype)


def plain_attention(q: mx.array, k: mx.array, v: mx.array, cache: Any, scale: float, mask: mx.array) -> mx.array:
    """Attention with gradients for its additive mask, which carries MLA's position scores; fused kernels have none."""
    scores = (q * scale) @ k.swapaxes(-1, -2) + mask
    return mx.softmax(scores, axis=-1, precise=True) @ v


def training_model(config: dict[str, Any], recipe: Recipe) -> nn.Module:
    model = deepseek_v3.Model(deepseek_v3.ModelArgs.from_dict(config))
    model.model.embed_tokens = WideEmbedding(model.model.embed_tokens, getattr(mx, recipe.dtype))
    for layer in moe_layers(model):
        layer.switch_mlp = PermutedSwitchGLU(layer.switch_mlp, recipe.capacity_factor)
        layer.gate = ScoredGate(layer.gate)
    return model


def moe_layers(model: nn.Module) -> list[nn.Module]:
    return [layer.mlp for layer in model.layers if "switch_mlp" in layer.mlp]


def initial_parameters(model: nn.Module, seed: int) -> dict[str, mx.array]:
    key = mx.random.key(seed)
    depth = len(model.layers)
    parameters = {}
    for name, array in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        if name.endswith("e_score_correction_bias"):
            continue
        if array.ndim == 1:
            parameters[name] = mx.ones(array.shape)
        else:
            scale = 0.02 if "embed_tokens" in name or "lm_head" in name else 0.6 / math.sqrt(array.shape[-1])
            scale /= math.sqrt(2 * depth) if "o_proj" in name or "down_proj" in name else 1  # residual writers start small
            parameters[name] = mx.random.normal(array.shape, scale=scale, key=own)
    return parameters


# --- loss and optimiser ------------------------------------------------------------------------------------------------


def rounded(name: str, weight: mx.array, dtype: mx.Dtype) -> mx.array:
    return weight if "embed_tokens" in name else weight.astype(dtype)


def forward(model: nn.Module, parameters: dict[str, mx.array], biases: mx.array, tokens: mx.array, recipe: Recipe) -> tuple[mx.array, ...]:
    """(mean loss in nats a token, 1 - neighbour correlation of router scores, loads [layers, experts], ids)."""
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


def is_matrix(name: str, weight: mx.array) -> bool:
    return weight.ndim >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate."))


def orthogonal(matrix: mx.array) -> mx.array:
    """Newton-Schulz to the nearest (semi-)orthogonal matrix, over leading axes at once (Muon, K. Jordan 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.swapaxes(-1, -2) if tall else matrix).astype(mx.bfloat16)
    x = x * mx.rsqrt((x * x).sum(axis=(-2, -1), keepdims=True) + 1e-12)
    for _ in range(5):
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.swapaxes(-1, -2) if tall else x).astype(mx.float32)


def updated(name: str, weight: mx.array, gradient: mx.array, first: mx.array, second: mx.array, count: mx.array, rate: mx.array,
            decay: float) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """One step of Muon (matrices) or AdamW (the rest): (weight, first moment, second moment)."""
    if is_matrix(name, weight):
        first = 0.95 * first + gradient
        direction = orthogonal(gradient + 0.95 * first) * (0.2 * math.sqrt(max(weight.shape[-2:])))
    else:
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient * gradient
        direction = first / (1 - 0.9**count) / (mx.sqrt(second / (1 - 0.95**count)) + 1e-8)
    shrink = decay if weight.ndim >= 2 else 0.0
    return weight - rate * (direction + shrink * weight), first, second


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
            new["weight"][name], new["first"][name], new["second"][name] = updated(
                name, weight, gradients[name] * clip, state["first"][name], state["second"][name], count, rate, recipe.weight_decay
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


# --- data, evaluation, checkpoint --------------------------------------------------------------------------------------


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


def hf_tensors(parameters: dict[str, mx.array], biases: mx.array, config: dict[str, Any]) -> list[list[tuple[str, mx.array]]]:
    """Tensors under the names of Kimi's originals, in groups that stay together in a file: the three of one expert."""
    groups, experts = [], []
    for name, weight in parameters.items():
        if ".switch_mlp.gate_proj." in name:
            for expert in range(config["n_routed_experts"]):
                experts.append([
                    (name.replace("switch_mlp.gate_proj", f"experts.{expert}.{p}"), parameters[name.replace("gate_proj", p)][expert])
                    for p in ("gate_proj", "up_proj", "down_proj")
                ])  # fmt: skip
        elif ".switch_mlp." not in name:
            groups.append([(name, weight)])
    for row, bias in enumerate(biases):
        layer = config["first_k_dense_replace"] + row
        groups.insert(0, [(f"model.layers.{layer}.mlp.gate.e_score_correction_bias", bias)])
    return groups + experts


def save_checkpoint(folder: Path, parameters: dict[str, mx.array], biases: mx.array, config: dict[str, Any]) -> None:
    """bfloat16 shards of at most 15 MB (the correction bias in float32), their index and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[tuple[str, mx.array]]] = [[]]
    size = 0
    for group in hf_tensors(parameters, biases, config):
        group_bytes = sum(array.size * (4 if "bias" in name else 2) for name, array in group)
        if size + group_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1] += group
        size += group_bytes
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_safetensors(folder / file, tensors)
        weight_map |= {name: file for name, _ in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_safetensors(path: Path, tensors: list[tuple[str, mx.array]]) -> int:
    """Our own writer, because the order in the file matters: the tensors of one expert must be one byte range."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    blobs, at = [], 0
    for name, array in tensors:
        wide = "e_score_correction_bias" in name
        blob = np.array(array.astype(mx.float32) if wide else array.astype(mx.bfloat16).view(mx.uint16)).tobytes()
        header[name] = {"dtype": "F32" if wide else "BF16", "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    return at


def rate_at(share: float, recipe: Recipe) -> float:
    """Learning rate once `share` of the time is over: linear warm-up, then half a cosine down to zero."""
    warm = min(1.0, share / recipe.warmup_share)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def train(config: dict[str, Any], recipe: Recipe, tokens: np.ndarray, held_out: np.ndarray, held_out_bytes: int, minutes: float,
          out: Path, log_every_s: float = 15.0) -> list[dict[str, float]]:  # fmt: skip
    """Train for `minutes` of wall clock, write the checkpoint and training_log.csv into `out`, return the log."""
    deepseek_v3.scaled_dot_product_attention = plain_attention
    model = training_model(config, recipe)
    state = initial_state(model, config, recipe)
    step, evaluate = make_step(model, recipe), make_evaluate(model, recipe, held_out, held_out_bytes)
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
        state, figures = step(state, next(data), mx.array(rate_at(share, recipe)))
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
    config = TOY | {"vocab_size": CONFIG["vocab_size"]} if arguments["toy"] else CONFIG
    train(config, recipe, tokens, held_out["tokens"], int(held_out["bytes"]), arguments["minutes"], arguments["out"])


if __name__ == "__main__":
    main()
