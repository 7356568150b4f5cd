"""Metal knobs: refused in one line on every other backend, and where MLX has started without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import KnobError, Knobs, load
from engine.effective import effective
from engine.knobs import METAL
from engine.model.environment import metal, mlx_environment

SET: dict[str, Any] = {"gpu_keep_warm": True, "mlx_ops_per_buffer": 20, "mlx_mb_per_buffer": 50, "mlx_fast_synch": True}


def test_the_metal_knobs_are_off_by_default() -> None:
    assert set(SET) == set(METAL) and not any(getattr(Knobs(), name) for name in METAL)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("name", METAL)
def test_another_backend_refuses_each_before_the_checkpoint_is_opened(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metal, "backend", lambda: backend)
    with pytest.raises(
        KnobError, match=rf"^{name}=\S+ exists only on MLX's Metal backend, .* on {backend} here; leave it out$"
    ):
        load(Path("/nowhere"), Knobs(**{name: SET[name]}))


@pytest.mark.parametrize("name", [n for n in METAL if n != "gpu_keep_warm"])
def test_metal_refuses_what_its_mlx_has_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal, "backend", lambda: "metal")
    variable = mlx_environment.VARIABLES[name]
    monkeypatch.setitem(mlx_environment.AT_START, variable, None)
    with pytest.raises(
        KnobError, match=rf"^{name}=\d+ comes too late: MLX reads {variable} once.*start Python with {variable}="
    ):
        metal.refuse_without_effect(Knobs(**{name: SET[name]}))
    monkeypatch.setitem(mlx_environment.AT_START, variable, str(int(SET[name])))
    metal.refuse_without_effect(Knobs(**{name: SET[name]}))


def test_settings_of_a_search_lose_them_on_another_backend() -> None:
    class Sizes:
        def __init__(self, backend: str) -> None:
            self.backend = backend

    assert effective(SET, lambda _: Sizes("cpu")) == {}
    assert effective(SET, lambda _: Sizes("metal")) == SET == effective(SET)
    assert effective(dict.fromkeys(METAL), lambda _: Sizes("metal")) == dict.fromkeys(METAL)
