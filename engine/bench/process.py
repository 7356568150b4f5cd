"""Process: measures the memory of a process that runs a model, and stores it in the user's cache folder.

    python -m engine.bench.process

`engine.plan.memory.process` starts it. The model has random weights of a few hundred kilobytes, so that the peak is that of
Python, the libraries, the threads and the device's context.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import engine.tokenizer.without_torch  # noqa: F401  # isort: skip - before mlx-lm, as in a run's process

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3_moe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.engine import load
from engine.knobs import GB, Knobs
from engine.measure.judge import Judge
from engine.plan.memory.process import process_file
from engine.system.memory import peak_memory_bytes
from engine.system.strict_json import to_json
from engine.system.user_cache import store_in_cache

CONFIG = {
    "model_type": "qwen3_moe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8,
    "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
STEP = 5_000_000  # bytes; the figure is rounded up, so that measuring it again does not change a study's bounds
TEXT = [["process", "text", "The quick brown fox jumps over the lazy dog. " * 4, " And the dog sleeps on."]]


def write_model(folder: Path) -> None:
    """Write a checkpoint of `CONFIG` with random weights and a tokenizer of one token a byte."""
    mx.random.seed(0)
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(CONFIG))
    parameters: Any = tree_flatten(model.parameters())
    weights = {name: value.astype(mx.bfloat16) for name, value in parameters}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(to_json(CONFIG), encoding="utf-8")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(to_json(described), encoding="utf-8")


def measure_process() -> int:
    """Return the peak of this process, which must have done nothing else, less MLX's own, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        with load(folder, Knobs(cache_gb=100_000 / GB, expert_bits=8, prefetch="stale_gate")) as engine:
            engine.measure(Judge.from_lists(TEXT))
            return peak_memory_bytes() - mx.get_peak_memory()


if __name__ == "__main__":
    rounded = -(-measure_process() // STEP) * STEP
    store_in_cache(process_file(), to_json({"bytes": rounded}).encode())
    print(f"a run's process takes {rounded / GB:.3f} GB without model and tokenizer; stored in {process_file()}")
