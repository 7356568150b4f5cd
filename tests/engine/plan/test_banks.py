"""Banks: planned sizes suffice for any profile, and the model computes with exactly the planned bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model
from plans import a_plan, a_profile

from engine import Checkpoint, Knobs, footprint, load
from engine.plan.banks import plan_banks
from engine.plan.bits import BitsPlan, compute_plan, hot_share_for, widths
from engine.plan.bits_file import save_plan
from engine.routing.profile import Profile

Make = Callable[..., Path]
TOKENS = [int(i) for i in np.random.default_rng(7).integers(0, 255, 40)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.6, 1.0])
def test_planned_sizes_suffice_for_any_profile(source: Checkpoint, share: float) -> None:
    knobs = Knobs(cold_bits=2, expert_bits=4, hot_share=share)
    sizes = footprint(source, knobs)
    for seed in range(5):
        worth = np.random.default_rng(seed).integers(0, 99, (3, 16)) ** 2 * [[seed + 1], [1], [1]]
        banks = plan_banks(source, knobs, compute_plan(source, knobs, Profile(worth)))
        assert sum(b.least * b.slot_bytes for b in banks) <= sizes.one_token_gb * 1e9 + 0.5
        assert sum(len(b.members) * b.slot_bytes for b in banks) == round(sizes.all_experts_gb * 1e9)


def test_a_mixed_checkpoint_is_never_widened(checkpoint: Make) -> None:
    """Stored at 3, 4 and 6 bits and bf16; cold experts get 4 bits where they have more."""
    source = Checkpoint.open(checkpoint("qwen3_moe", "mixed"))
    own = widths(source, None)
    assert set(np.unique(own)) == {3, 4, 6, 16}
    plan = compute_plan(source, Knobs(cold_bits=4, hot_share=0.5), a_profile(source))
    assert (plan.bits <= own).all() and set(np.unique(plan.bits[plan.bits != own])) == {4}
    low, high = ((w * plan.weights).sum() / plan.weights.sum() for w in (np.minimum(own, 4), own))
    assert plan.average_bits == pytest.approx((low + high) / 2, abs=0.05)
    assert hot_share_for(source, Knobs(cold_bits=4), (low + high) / 2) == pytest.approx(0.5)


def requantized_by_hand(path: Path, plan: BitsPlan, source: Checkpoint) -> np.ndarray:
    """Logits of mlx-lm's model in float32, with each expert's weights quantized and dequantized by mx.quantize."""
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    modules = dict(model.named_modules())
    for number, layer in enumerate(source.layers):
        place = next(name for name in modules if name.startswith(layer.block) and name.endswith("switch_mlp"))
        for p, name in enumerate(layer.projections):
            weight, group = modules[place][name].weight, 64 if layer.input_dims(name) % 64 == 0 else 32
            experts = []
            for expert, bits in enumerate(plan.bits[number, :, p].tolist()):
                how = {"group_size": group, "bits": bits}
                experts.append(weight[expert] if bits == 16 else mx.dequantize(*mx.quantize(weight[expert], **how), **how))
            modules[place][name].weight = mx.stack(experts)
    return np.array(model(mx.array(TOKENS)[None])[0])


@pytest.mark.parametrize(
    ("family", "by", "low", "high"),
    [("qwen3_moe", "expert", 2, 4), ("qwen3_moe", "projection", 2, None), ("nemotron_h", "projection", 3, 8),
     ("nemotron_h", "expert", 2, None), ("deepseek_v3", "layer", 2, 4)],
)  # fmt: skip
def test_a_mixed_plan_equals_experts_requantized_by_hand(
    checkpoint: Make, tmp_path: Path, family: str, by: str, low: int, high: int | None
) -> None:
    path = checkpoint(family, None)
    source = Checkpoint.open(path)
    plan = a_plan(source, by, 0.5, low, high)
    save_plan(tmp_path / "p", plan, source, Knobs(), None)
    expected = requantized_by_hand(path, plan, source)
    with load(path, Knobs(bits_plan=str(tmp_path / "p"))) as engine:
        mixed = engine.logits(TOKENS)
    assert np.max(np.abs(mixed - expected)) < 2e-4 * np.max(np.abs(expected))
    for bits in (low, high):
        with load(path, Knobs(expert_bits=bits)) as uniform:
            assert np.max(np.abs(uniform.logits(TOKENS) - expected)) > 1e-2 * np.max(np.abs(expected))
    for share in (0, 0.5):
        f = footprint(path, Knobs(bits_plan=str(tmp_path / "p")))
        cache_gb = f.one_token_gb + share * (f.all_experts_gb - f.one_token_gb)
        with load(path, Knobs(bits_plan=str(tmp_path / "p"), cache_gb=cache_gb)) as streamed:
            assert np.array_equal(streamed.logits(TOKENS), mixed)
