"""Kind: what a file or folder is that is no checkpoint, in one line with what to give instead."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

WEIGHTS = "safetensors files: an original or an MLX conversion from the hub, such as those of mlx-community"


def other_file(path: Path) -> str:
    """The line for a file that was given instead of a checkpoint's folder."""
    if path.suffix.lower() == ".gguf":
        return f"{path} is a GGUF file, which llama.cpp runs; give the folder of the same model as {WEIGHTS}"
    folder = path.parent
    if os.path.lexists(folder / "config.json"):
        return f"{path} is a file; give its folder: {folder}"
    return f"{path} is a file, and {folder} has no config.json; give the folder of a whole model"


def other_folder(path: Path) -> str | None:
    """The line for a folder that holds something else than a model in safetensors; None if it may be a checkpoint."""
    if any(path.glob("model*.safetensors")):
        return None
    adapter = path / "adapter_config.json"
    if os.path.lexists(adapter):
        return _adapter(path, adapter)
    if os.path.lexists(path / "model_index.json"):
        return f"{path} is a pipeline of diffusers (images or sound), not a language model; give a Mixture-of-Experts model"
    if gguf := next(iter(sorted(path.glob("*.gguf"))), None):
        return f"{path} has GGUF files ({gguf.name}), which llama.cpp runs; give the same model as {WEIGHTS}"
    if any(True for name in ("pytorch_model*.bin", "*.pth", "*.pt") for _ in path.glob(name)):
        return (
            f"{path} has weights of PyTorch, and no model*.safetensors; save it again with transformers' save_pretrained, "
            f"or give {WEIGHTS}"
        )
    if any(path.glob("weights*.npz")):
        return f"{path} has weights.npz, the format of the first MLX models; convert the original with mlx_lm.convert"
    if os.path.lexists(path / "config.json"):
        return None
    if below := next((place for place in _below(path) if os.path.lexists(place / "config.json")), None):
        return f"{path} has no config.json, but {below} has one; give that folder"
    return None


def _adapter(path: Path, file: Path) -> str:
    """The line for a LoRA adapter, of mlx-lm or of PEFT."""
    content = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(file.read_text(encoding="utf-8"))
    content = content if isinstance(content, dict) else {}
    base = content.get("base_model_name_or_path") or content.get("model")
    of = f" of {base}" if isinstance(base, str) and base else ""
    if "peft_type" in content:
        return (
            f"{path} is an adapter (LoRA){of}, not a model; merge it with PEFT's merge_and_unload, and give the saved model"
        )
    model = base if of else "MODEL"
    return (
        f"{path} is an adapter (LoRA){of}, not a model; fuse it with "
        f"mlx_lm.fuse --model {model} --adapter-path {path} --save-path NEW, and give NEW"
    )


def _below(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(place for place in path.iterdir() if place.is_dir())
    return []
