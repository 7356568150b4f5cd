"""Stored experts: originals that mlx-lm takes apart are streamed in place or packed, and give mlx-lm's own logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP
from mlx_lm.utils import load_model
from originals import COMPUTED, LAYOUTS, NOT_TO_PACK, ONLY_TO_PACK, make_stored, outcome
from stores import off, one_line

from engine import Checkpoint, CheckpointError, Engine, Knobs, footprint, load
from engine.model.open import lay_out_for_cpu
from engine.packing.pack import pack_store

Stored = Callable[[str], Path]
TOKENS = np.random.default_rng(7).integers(0, 255, 7)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    made: dict[str, Path] = {}

    def get(layout: str) -> Path:
        if layout not in made:
            made[layout] = make_stored(tmp_path_factory.mktemp("stored") / layout.replace(", ", "-"), layout)
        return made[layout]

    return get


def both_phases(engine: Engine) -> np.ndarray:
    """Logits of four tokens at once and of three more, one by one."""
    cache = make_prompt_cache(engine.model)
    parts = [*engine.forward.prefill(TOKENS[:4].tolist(), cache)]
    parts += [engine.forward.logits([int(t)], cache) for t in TOKENS[4:]]
    return np.concatenate([np.array(part) for part in parts])


def resident(path: Path) -> np.ndarray:
    """mlx-lm's own model of the original, laid out as the engine lays out resident weights."""
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    lay_out_for_cpu(model)
    cache = make_prompt_cache(model)
    parts = [np.array(model(mx.array(TOKENS[:4])[None], cache=cache)[0])]
    parts += [np.array(model(mx.array([[t]]), cache=cache)[0]) for t in TOKENS[4:].tolist()]
    return np.concatenate(parts)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ONLY_TO_PACK])
def test_streamed_in_place_equals_mlx_lm(stored: Stored, layout: str) -> None:
    path = stored(layout)
    expected = resident(path)
    assert outcome(path) == "in place"
    assert np.isfinite(expected).all() and expected.std() > 0.1
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb)) as engine:
        assert np.max(np.abs(both_phases(engine) - expected)) == 0
        assert engine.stats.misses > 0


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in NOT_TO_PACK])
def test_packed_equals_the_weights_as_mlx_lm_reads_them(stored: Stored, layout: str, tmp_path: Path) -> None:
    """Float weights are quantized to 8 bits, so that a transposed or exchanged projection is far off."""
    packed = tmp_path / "packed"
    pack_store(stored(layout), packed, (2, 4, 8))
    expected = resident(stored(layout))
    with load(packed) as whole:
        found = both_phases(whole)
    assert off(found, expected) < 0.04
    with load(packed, Knobs(cache_gb=footprint(packed).one_token_gb)) as engine:
        assert np.array_equal(both_phases(engine), found)


@pytest.mark.parametrize("layout", [name for name in ONLY_TO_PACK if name not in COMPUTED])
def test_the_refusal_names_a_remedy_that_works(stored: Stored, layout: str) -> None:
    assert outcome(stored(layout)) == "packed"
    with pytest.raises(CheckpointError, match=r"not one byte range per expert .* pack the model first") as e:
        load(stored(layout))
    one_line(e)


@pytest.mark.parametrize("layout", NOT_TO_PACK)
def test_a_shared_expert_among_the_routed_ones_is_not_packed(stored: Stored, layout: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"also holds the shared expert .* stream it in place") as e:
        pack_store(stored(layout), tmp_path / "packed")
    one_line(e)
    assert Checkpoint.open(stored(layout)).layers[0].experts == 8


@pytest.mark.parametrize("layout", ["gemma4", "mistral4", "phixtral", *NOT_TO_PACK])
def test_what_stays_resident_is_counted(stored: Stored, layout: str) -> None:
    """Without the experts, with the shared expert that is stored among them."""
    model, _ = load_model(stored(layout), lazy=True)
    paths = tuple(f"{path}." for path, m in model.named_modules() if isinstance(m, SwitchGLU | SwitchMLP))
    sizes = {name: value.nbytes for name, value in tree_flatten(model.parameters())}
    source = Checkpoint.open(stored(layout))
    assert source.expert_bytes == sum(n for name, n in sizes.items() if name.startswith(paths))
    assert source.rest_bytes == pytest.approx(sum(n for name, n in sizes.items() if not name.startswith(paths)), rel=0.01)
