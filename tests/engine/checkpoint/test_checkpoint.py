"""Opening checkpoints: sizes, and one line for every unusable folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import mlx.core as mx
import pytest

from engine import Checkpoint, CheckpointError, Knobs, footprint, load
from engine.system.user_cache import child_environment

Make = Callable[..., Path]
BOTH = """
import sys
from pathlib import Path

from engine.bench.opening import open_and_plan, open_with_mlx_lm
from engine.system.strict_json import to_json

print(to_json([part(Path(sys.argv[1])) for part in (open_and_plan, open_with_mlx_lm)]))
"""


@pytest.fixture
def damaged(checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("deepseek_v3", None, True), tmp_path / "damaged"))


def test_footprint_adds_up(checkpoint: Make) -> None:
    path = checkpoint("deepseek_v3", None, True)
    f = footprint(path)
    expert = 3 * 64 * 32 * 4  # three projections in float32, as the CPU computes
    assert f.one_token_gb * 1e9 == pytest.approx(3 * 4 * expert)
    assert f.all_experts_gb * 1e9 == pytest.approx(3 * 16 * expert)
    half = footprint(path, Knobs(expert_bits=4))
    assert half.one_token_gb < f.one_token_gb / 4


def test_fingerprint_follows_the_content_not_the_place(checkpoint: Make, damaged: Path) -> None:
    original = Checkpoint.open(checkpoint("deepseek_v3", None, True)).fingerprint
    assert Checkpoint.open(damaged).fingerprint == original
    file = damaged / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Checkpoint.open(damaged).fingerprint != original


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is not a folder; give"):
        Checkpoint.open(tmp_path / "nowhere")


def test_no_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}')
    with pytest.raises(CheckpointError, match=r"no model\*\.safetensors"):
        Checkpoint.open(tmp_path)


def test_not_a_mixture_of_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"model.embed_tokens.weight": mx.zeros((4, 4))})
    with pytest.raises(CheckpointError, match=r"\(llama\) has no routed experts.*Mixture-of-Experts"):
        load(tmp_path)


def test_an_architecture_that_mlx_lm_lacks(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "model_type": "moonbeam"}))
    with pytest.raises(CheckpointError, match="mlx-lm has no architecture moonbeam"):
        load(damaged)


def test_missing_resident_tensor(damaged: Path) -> None:
    weights = mx.load(str(damaged / "model.safetensors"))
    del weights["model.norm.weight"]
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(
        CheckpointError, match=r"lacks model\.norm\.weight, which mlx-lm needs by its config\.json; copy"
    ) as e:
        load(damaged)
    one_line(e)


@pytest.mark.slow
def test_kimi_in_full(sparse_kimi: Path) -> None:
    """Kimi K2.5's original in its full shape, as sparse files: the sizes are right, and little memory is used. The parts of
    `bench open` run one after the other in one process, which reads the headers once."""
    done = subprocess.run([sys.executable, "-c", BOTH, sparse_kimi], env=child_environment(), stdout=PIPE, check=True)
    result, mlx_lm = json.loads(done.stdout)
    assert (result["tensors"], result["files"], result["layers"], mlx_lm["switches"]) == (208_215, 61, 60, 60)
    expert = 3 * 2048 * 7168 * 4.5 / 8 / 1e9  # four bits, and sixteen for every 32 weights
    assert result["one_token_read_gb"] == pytest.approx(60 * 8 * expert) == pytest.approx(11.9, abs=0.05)
    assert result["experts_gb"] == pytest.approx(60 * 384 * expert) and result["apparent_gb"] == pytest.approx(
        594.2, abs=0.1
    )
    assert result["slots"] == 60 * 384 // 2
    assert result["peak_gb"] < 1.5 and mlx_lm["peak_gb"] < 1.5
    in_memory = 3 * 2048 * 7168 * (4 + 2 * 32 / 32) / 8 / 1e9  # scales and biases in float32 on the CPU
    assert result["one_token_slots_gb"] == pytest.approx(60 * 8 * in_memory)
    assert result["resident_gb"] == pytest.approx(2 * 23.4, abs=0.1)
