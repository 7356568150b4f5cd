"""bench pack: packing against a plain copy of the same file, and the cost of comparing checksums on every read.

The sources are synthetic: one layer of experts in the shape of Kimi K2's, in each layout that can be packed. Both contenders
read from the page cache and write until the disk has everything. Packing speed counts bytes of the source.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from engine.checkpoint.built.model import build
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.dtypes import ITEM_BYTES, to_bytes
from engine.engine import Engine, load
from engine.errors import CheckpointError
from engine.knobs import GB, Knobs
from engine.native import core
from engine.packing.files import COPY_BYTES
from engine.packing.pack import pack_store
from engine.packing.verify import verify_store
from engine.plan.footprint import weights_of
from engine.system.strict_json import to_json

from .contender import Contender, in_turns, ratios, spread

ROWS, COLUMNS, EXPERTS = 2048, 7168, 4  # EXPERTS is the least number
POOL = 1 << 22  # random weights, repeated to fill a tensor
TOKENS = 64
# Tensors of each expert's projections: name, type, and number of weights per item.
SOURCES: dict[str, list[tuple[str, str, int]]] = {
    "4-bit affine": [("weight", "U32", 8), ("scales", "BF16", 64), ("biases", "BF16", 64)],
    "INT4": [("weight_packed", "I32", 8), ("weight_scale", "BF16", 32)],
    "8-bit affine": [("weight", "U32", 4), ("scales", "BF16", 64), ("biases", "BF16", 64)],
    "bf16": [("weight", "BF16", 1)], "FP8": [("weight", "F8_E4M3", 1), ("weight_scale_inv", "F32", 128 * 128)],
    "mxfp4": [("weight", "U32", 8), ("scales", "U8", 32)],
}  # fmt: skip


def bench_pack(path: Path, *, rounds: int, mib: int) -> dict[str, Any]:
    """MB/s of source for every layout beside copying, GB/s of checksums, and the decoding speed of `path`, packed, with and
    without `verify_reads`; medians and quartiles of `rounds` rounds. The speed per core counts CPU time, so that other load
    on the machine does not change it."""
    cores = os.cpu_count() or 1
    print(f"{cores} cores; MB/s of source, median (and quartiles) of {rounds} rounds")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what in SOURCES:
            _synthetic(folder / "source", what, mib << 20)
            row = _row(what, folder, rounds)
            rows.append(row)
            (low, pack, high), (_, copy, _), (_, core, _) = row["pack_mb_s"], row["copy_mb_s"], row["pack_mb_s_a_core"]
            print(f"  {what:<14}packed {pack:5.0f} ({low:.0f} .. {high:.0f}); per core {core:4.0f}; copied {copy:5.0f}")
            shutil.rmtree(folder / "source")
        verify = _verify(path, folder / "packed", rounds)
    return {"bench": "pack", "cores": cores, "rounds": rounds, "rows": rows, "verify": verify}


def _row(what: str, folder: Path, rounds: int) -> dict[str, Any]:
    source, store, copy = folder / "source", folder / "store", folder / "copy"
    megabytes = (source / "model.safetensors").stat().st_size / 1e6
    per_core: list[float] = []

    def pack() -> float:
        shutil.rmtree(store, ignore_errors=True)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        pack_store(source, store)
        per_core.append(megabytes / (time.process_time() - cpu_begin))
        return megabytes / (time.perf_counter() - begin)

    contenders = [Contender("pack", pack), Contender("copy", lambda: megabytes / _seconds_to_copy(source, copy))]
    in_turns(contenders, rounds)
    share, low, high = ratios(*contenders)
    return {
        "source": what, "mb": megabytes, "pack_mb_s": spread(contenders[0].figures), "pack_mb_s_a_core": spread(per_core),
        "copy_mb_s": spread(contenders[1].figures), "share_of_copy": [low, share, high],
    }  # fmt: skip


def _seconds_to_copy(source: Path, copy: Path) -> float:
    """Seconds to copy the source's file, until the disk has all of it."""
    copy.unlink(missing_ok=True)
    begin = time.perf_counter()
    with open(source / "model.safetensors", "rb") as f, open(copy, "wb") as out:
        while part := f.read(COPY_BYTES):
            out.write(part)
        out.flush()
        os.fsync(out.fileno())
    return time.perf_counter() - begin


def _synthetic(path: Path, what: str, nbytes: int) -> Path:
    """A checkpoint of one layer and about `nbytes`."""
    per_expert = what in ("INT4", "FP8")
    items = sum(-(-ROWS * COLUMNS // shared) * ITEM_BYTES[dtype] for _, dtype, shared in SOURCES[what])
    experts = max(EXPERTS, round(nbytes / (3 * items)))
    config: dict[str, Any] = {
        "model_type": "deepseek_v3" if per_expert else "qwen3_moe", "num_hidden_layers": 1, "num_experts_per_tok": 2,
        "n_routed_experts": experts, "num_experts": experts, "hidden_size": COLUMNS, "moe_intermediate_size": ROWS,
        "first_k_dense_replace": 0, "vocab_size": 256, "intermediate_size": ROWS, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 64, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": False,
        "q_lora_rank": 64, "kv_lora_rank": 64,
    }  # fmt: skip
    header: dict[str, Any] = {}
    contents: list[tuple[str, str, int]] = []
    for projection, shape in {
        "down_proj": (COLUMNS, ROWS),
        "gate_proj": (ROWS, COLUMNS),
        "up_proj": (ROWS, COLUMNS),
    }.items():
        for expert in range(experts) if per_expert else [None]:
            for tensor, dtype, shared in SOURCES[what]:
                owner = f"switch_mlp.{projection}" if expert is None else f"experts.{expert}.{projection}"
                one = [n // 128 for n in shape] if shared == 128 * 128 else [shape[0], shape[1] // shared]
                whole = one if per_expert else [experts, *one]
                begin = sum(n for _, _, n in contents)
                length = int(np.prod(whole)) * ITEM_BYTES[dtype]
                header[f"model.layers.0.mlp.{owner}.{tensor}"] = {
                    "dtype": dtype, "shape": whole, "data_offsets": [begin, begin + length]
                }  # fmt: skip
                contents.append((tensor, dtype, length))
            if what == "INT4":  # mlx-lm takes a weight for INT4 by its shape's tensor, whose values it does not read
                begin = sum(n for _, _, n in contents)
                header[f"model.layers.0.mlp.{owner}.weight_shape"] = {
                    "dtype": "I32", "shape": [2], "data_offsets": [begin, begin + 8]
                }  # fmt: skip
                contents.append(("weight_shape", "I32", 8))
    at = sum(n for _, _, n in contents)
    for name, dimensions in _resident(config).items():
        length = int(np.prod(dimensions)) * ITEM_BYTES["BF16"]
        header[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [at, at + length]}
        contents.append(("resident", "BF16", length))
        at += length
    path.mkdir()
    (path / "config.json").write_text(to_json(config))
    encoded = to_json(header).encode()
    rng = np.random.default_rng(0)
    with open(path / "model.safetensors", "wb") as f:
        f.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor, dtype, length in contents:
            pool = _content(tensor, dtype, rng)
            for at in range(0, length, len(pool)):
                f.write(pool[: length - at])
    return path


def _resident(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters outside the experts, by name. A checkpoint without them is refused."""
    parameters: Any = tree_flatten(build(config).parameters())
    return {name: value.shape for name, value in parameters if ".switch_mlp." not in name}


def _content(tensor: str, dtype: str, rng: np.random.Generator) -> bytes:
    """Bytes that fill a tensor: random codes, experts' weights of variance 4e-4, and one plausible value for all others."""
    if dtype == "F8_E4M3":
        return rng.integers(0, 120, POOL, np.uint8).tobytes()
    if dtype in ("U32", "I32"):
        return rng.bytes(POOL)
    if dtype == "U8":
        return bytes([120]) * POOL
    values = np.full(POOL, -0.03 if tensor == "biases" else 0.004, np.float32)
    return to_bytes(
        rng.standard_normal(POOL, np.float32) * np.float32(0.02) if tensor == "weight" else values, dtype
    ).tobytes()


def _verify(path: Path, store: Path, rounds: int) -> dict[str, Any]:
    """CRC-32 in GB/s of one core, reading and comparing a whole store in GB/s, and decoding with and
    without `verify_reads`."""
    block = np.random.default_rng(0).integers(0, 256, 64 << 20, np.uint8).data
    begin = time.perf_counter()
    core.crc32(block)
    crc_gbps = len(block) / (time.perf_counter() - begin) / GB
    if Checkpoint.open(path, to_pack=True).levels is not None:
        raise CheckpointError(f"bench pack: {path} is a packed store; give the checkpoint that it was made from")
    pack_store(path, store)
    opened = Checkpoint.open(store)
    sizes = weights_of(opened, Knobs())
    begin = time.perf_counter()
    damaged = verify_store(store)
    store_gbps = opened.expert_bytes / (time.perf_counter() - begin) / GB
    assert not damaged
    cache_gb = (sizes.one_token_gb + sizes.all_experts_gb) / 4
    tokens = np.random.default_rng(1).integers(0, opened.built.vocabulary, TOKENS).tolist()
    with (
        load(store, Knobs(cache_gb=cache_gb)) as plain,
        load(store, Knobs(cache_gb=cache_gb, verify_reads=True)) as verified,
    ):
        contenders = [
            Contender("without", lambda: _tok_s(plain, tokens)),
            Contender("with", lambda: _tok_s(verified, tokens)),
        ]
        in_turns(contenders, rounds + 1)
        for contender in contenders:
            del contender.figures[0]  # the first round is a warm-up
        read = verified.stats.bytes_read / verified.stats.tokens
    share, low, high = ratios(contenders[1], contenders[0])
    print(f"checksums: {crc_gbps:.2f} GB/s per core; a whole store read and compared: {store_gbps:.2f} GB/s")
    print(
        f"verify_reads: {contenders[1].median:.1f} tok/s, {contenders[0].median:.1f} without; share {share:.3f} "
        f"({low:.3f} .. {high:.3f}), {read / 1e6:.1f} MB read per token"
    )
    return {
        "crc32_gbps": crc_gbps, "verify_gbps": store_gbps, "tok_s_without": spread(contenders[0].figures),
        "tok_s_with": spread(contenders[1].figures), "share": [low, share, high], "read_mb_per_token": read / 1e6,
    }  # fmt: skip


def _tok_s(engine: Engine, tokens: list[int]) -> float:
    cache: list[Any] = make_prompt_cache(engine.model)
    begin = time.perf_counter()
    for token in tokens:
        mx.eval(engine.forward.decode(token, cache))
    return len(tokens) / (time.perf_counter() - begin)
