"""Figures that are not finite: refused wherever they come out, with the first layer whose output is not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine import Engine, Judge, Knobs, Measurement, footprint, load
from engine.errors import FigureError, HeadraceError
from engine.measure.judge import Text
from engine.measure.measurement import REQUIRED, perplexity
from engine.measure.not_finite import LogitsError, check_nll, first_layer
from engine.quality.reference import take_reference

TEXT = "The headrace brings the water to the wheel. "
JUDGE = Judge((Text("a", "prose", TEXT, TEXT[:12]), Text("b", "prose", TEXT[::-1], TEXT[8:20])))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_moe", None, True)


@pytest.fixture(scope="module", params=["resident", "streamed", "windows"])
def engine(request: pytest.FixtureRequest, path: Path) -> Iterator[Engine]:
    need = footprint(path)
    gb = need.one_token_gb + 0.4 * (need.all_experts_gb - need.one_token_gb)
    given: dict[str, Any] = {"resident": {}, "streamed": {"cache_gb": gb}, "windows": {"cache_gb": gb, "sync_window": 0}}
    with load(path, Knobs(**given[request.param])) as engine:
        yield engine


@contextlib.contextmanager
def broken(module: Any, value: float) -> Iterator[None]:
    """One weight of a norm is not finite."""
    before = module.weight
    module.weight = mx.concatenate([mx.array([value], before.dtype), before[1:]])
    try:
        yield
    finally:
        module.weight = before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_figure_of_broken_weights_is_refused(engine: Engine, value: float) -> None:
    """In measuring, generating and scoring, with the layer's number; the engine works again once the weights do."""
    last = len(engine.model.layers) - 1
    norm = engine.model.layers[last].post_attention_layernorm
    uses: list[Callable[[], Any]] = [
        lambda: engine.measure(JUDGE),
        lambda: "".join(engine.generate(TEXT, 4)),
        lambda: "".join(engine.generate(TEXT, 4, temperature=1.0)),
        lambda: take_reference(engine, JUDGE),
    ]
    with broken(norm, value):
        for use in uses:
            with pytest.raises(LogitsError, match=r"the logits .* are not finite") as e:
                use()
            place = f"the output of layer {last} of 0 .. {last} is the first that is not finite"
            assert (place in str(e.value)) == (engine.windows is None)
            assert engine.checkpoint.name in str(e.value) and "copy the checkpoint again" in str(e.value)
            assert "\n" not in str(e.value) and isinstance(e.value, HeadraceError)
    assert math.isfinite(engine.measure(JUDGE).decode_tok_s)
    assert len("".join(engine.generate(TEXT, 4))) >= 1


def test_the_place_is_the_first(engine: Engine) -> None:
    if engine.windows is not None:
        return
    classes = [type(layer) for layer in engine.model.layers]
    ids = engine.encode(TEXT)

    def run() -> list[mx.array]:
        return [mx.array(engine.logits(ids))]

    assert first_layer(engine.model, run) == ""
    with broken(engine.model.layers[0].input_layernorm, math.nan):
        assert "layer 0 of" in first_layer(engine.model, run)
    with broken(engine.model.model.norm, math.nan):
        assert first_layer(engine.model, run).endswith("layers are finite, but not that of the head")
    assert [type(layer) for layer in engine.model.layers] == classes


def test_lossy_knobs_are_named(path: Path) -> None:
    with (
        load(path, Knobs(expert_bits=4)) as engine,
        broken(engine.model.layers[0].input_layernorm, math.nan),
        pytest.raises(LogitsError, match="unset expert_bits=4"),
    ):
        engine.measure(JUDGE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_measurement_has_a_figure_that_is_not_finite(bad: float) -> None:
    """Every figure, however the measurement is made."""
    least = dict.fromkeys(REQUIRED, 1.0)
    floats = [n for n in Measurement.names() if "float" in str(Measurement.__dataclass_fields__[n].type)]
    for name in [*floats, "token_ms"]:
        value = (1.0, bad) if name == "token_ms" else bad
        with pytest.raises(FigureError, match=name):
            Measurement(**{**least, name: value})
        with pytest.raises(HeadraceError, match=name):
            Measurement.from_mapping({**least, name: value})
    with pytest.raises(LogitsError, match="timed token 3"):
        check_nll(np.array([1.0, bad]), "timed token 3")


def test_a_perplexity_beyond_a_float_is_refused() -> None:
    assert perplexity(np.array([1.0, 1.0]))[0] == pytest.approx(math.e)
    for nll in ([800.0, 900.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(FigureError, match=r"perplexity is not finite: the mean nll of 2 tokens"):
            perplexity(np.array(nll))
