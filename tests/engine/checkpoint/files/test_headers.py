"""Headers: a header that is damaged or disagrees with its file is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Checkpoint, CheckpointError, Knobs, load

Make = Callable[..., Path]
Header = dict[str, Any]


@pytest.fixture
def damaged(checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("deepseek_v3", None, True), tmp_path / "damaged"))


def edit(path: Path, change: Callable[[Header], None]) -> None:
    """Change a checkpoint's header; its data stays."""
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("keep", [4, 100, 0.5])
def test_truncated(damaged: Path, keep: float) -> None:
    file = damaged / "model.safetensors"
    size = file.stat().st_size
    content = file.read_bytes()[: int(keep * size) if keep < 1 else int(keep)]
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated.*copy it again") as e:
        load(damaged)
    one_line(e)


def test_damaged_header(damaged: Path) -> None:
    file = damaged / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"\x00\x00\x00\x00"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged header"):
        Checkpoint.open(damaged)


EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"  # 4096 bytes of BF16 [32, 64]


def offsets(*values: int) -> Callable[[Header], None]:
    return lambda header: header[EXPERT].update(data_offsets=list(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h[EXPERT].update(data_offsets=[at + (1 << 40) for at in h[EXPERT]["data_offsets"]]), "truncated or its"),
        (offsets(-4096, 0), "has a damaged entry"),
        (offsets(4096, 0), r"lies at bytes 4096 to 0 of \d+; copy it again"),
        (offsets(0, 4096), r"ends at byte \d+, but .* begins at 0"),
        (offsets(0, 4095), r"takes 4096 bytes as BF16 of shape \[32, 64\], but has 4095; copy it again"),
        (lambda h: h[EXPERT].update(shape=[32, 65]), r"takes 4160 bytes .* but has 4096"),
        (lambda h: h[EXPERT].update(dtype="BF17"), "unknown dtype 'BF17' .known: F64, "),
        (lambda h: h[EXPERT].update(dtype=["BF16"]), "has a damaged entry"),
        (lambda h: h[EXPERT].update(shape=[32.0, 64]), "has a damaged entry"),
        (lambda h: h[EXPERT].pop("shape"), "has a damaged entry"),
        (lambda h: h.update({EXPERT: 5}), "has a damaged entry"),
        (lambda h: h[EXPERT].update(shape=[64, 32]), r"up_proj\.weight for 16 of 16 experts in 2 shapes"),
        (lambda h: h.update({EXPERT + "_scale_inv": h.pop(EXPERT)}), r"lacks .*up_proj\.weight, which mlx-lm needs"),
        (lambda h: h.update({EXPERT.replace("up_proj", "w3"): h[EXPERT]}), "ends at byte"),
    ],
)
def test_a_header_that_lies(damaged: Path, change: Callable[[Header], None], message: str) -> None:
    edit(damaged, change)
    for knobs in (Knobs(), Knobs(cache_gb=0.001)):
        with pytest.raises(CheckpointError, match=message) as e:
            load(damaged, knobs)
        assert str(damaged) in one_line(e)


@pytest.mark.parametrize(
    "header", [b"[]", b"7", b'{"a": 1, "a": 2}', b"[" * 9000, b"\xff\xfe", b'{"__metadata__": {}, "a\\n": 3}']
)
def test_a_header_that_is_no_table_of_tensors(damaged: Path, header: bytes) -> None:
    (damaged / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"damaged (header|entry).*copy it again") as e:
        Checkpoint.open(damaged)
    one_line(e)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_header_of_another_length(damaged: Path, length: int) -> None:
    file = damaged / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="copy it again") as e:
        Checkpoint.open(damaged)
    one_line(e)
