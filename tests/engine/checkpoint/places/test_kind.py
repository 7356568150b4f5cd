"""Files and folders that are no checkpoint: each gets a line with what to give instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.checkpoint.places.kind import other_file, other_folder


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"a.gguf": ""}, "GGUF files .a.gguf., which llama.cpp runs"),
        ({"a.gguf": "", "config.json": "{}"}, "GGUF files"),
        ({"adapter_config.json": '{"model": "ORG/BASE"}'}, "mlx_lm.fuse --model ORG/BASE --adapter-path"),
        ({"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "B"}'}, "of B, .*merge_and_unload"),
        ({"adapter_config.json": "{"}, "adapter .*mlx_lm.fuse --model MODEL"),
        ({"adapter_config.json": "[" * 100_000}, "adapter"),
        ({"model_index.json": "{}"}, "diffusers"),
        ({"pytorch_model.bin": "", "config.json": "{}"}, "PyTorch.*save_pretrained"),
        ({"pytorch_model-00001-of-00002.bin": ""}, "PyTorch"),
        ({"consolidated.00.pth": "", "params.json": "{}"}, "PyTorch"),
        ({"weights.00.npz": "", "config.json": "{}"}, "mlx_lm.convert"),
        ({"below/config.json": "{}"}, "but .*below has one"),
        ({"model.safetensors": "", "config.json": "{}"}, None),
        ({"config.json": "{}"}, None),
        ({}, None),
    ],
)
def test_the_line_of_a_folder(tmp_path: Path, files: dict[str, str], line: str | None) -> None:
    import re

    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = other_folder(tmp_path)
    assert (found is None) == (line is None)
    assert line is None or found is None or (re.search(line, found) and "\n" not in found)


def test_the_line_of_a_file(tmp_path: Path) -> None:
    assert "llama.cpp" in other_file(tmp_path / "A.GGUF")
    assert "give the folder of a whole model" in other_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert other_file(tmp_path / "model.safetensors").endswith(f"give its folder: {tmp_path}")
