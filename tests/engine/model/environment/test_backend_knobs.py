"""Backend knobs: refused in one line on every other backend, and where MLX has started without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import KnobError, Knobs, load
from engine.effective import effective
from engine.knobs import BACKENDS, DEFAULTS
from engine.model.environment import backend_knobs, mlx_environment

SET: dict[str, Any] = {
    "gpu_keep_warm": True, "mlx_ops_per_buffer": 20, "mlx_mb_per_buffer": 50, "mlx_fast_synch": True,
    "mlx_cuda_graphs": False,
}  # fmt: skip
NAMES = {"metal": "Metal", "cuda": "CUDA"}


def test_the_values_of_this_test_are_not_the_defaults() -> None:
    assert set(SET) == set(BACKENDS) and all(DEFAULTS[name] != value for name, value in SET.items())


@pytest.mark.parametrize("backend", ["cpu", "cuda", "metal"])
@pytest.mark.parametrize("name", BACKENDS)
def test_another_backend_refuses_each_before_the_checkpoint_is_opened(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_knobs, "backend", lambda: backend)
    own = BACKENDS[name]
    if backend == own:
        backend_knobs.refuse_elsewhere(Knobs(**{name: SET[name]}))
        return
    with pytest.raises(
        KnobError, match=rf"^{name}=\S+ exists only on MLX's {NAMES[own]} backend, .* on {backend} here; leave it out$"
    ):
        load(Path("/nowhere"), Knobs(**{name: SET[name]}))


@pytest.mark.parametrize("name", [n for n in BACKENDS if n != "gpu_keep_warm"])
def test_a_backend_refuses_what_its_mlx_has_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_knobs, "backend", lambda: BACKENDS[name])
    variable = mlx_environment.VARIABLES[name]
    monkeypatch.setitem(mlx_environment.AT_START, variable, None)
    with pytest.raises(
        KnobError, match=rf"^{name}=\d+ comes too late: MLX reads {variable} once.*start Python with {variable}="
    ):
        backend_knobs.refuse_without_effect(Knobs(**{name: SET[name]}))
    monkeypatch.setitem(mlx_environment.AT_START, variable, str(int(SET[name])))
    backend_knobs.refuse_without_effect(Knobs(**{name: SET[name]}))


def test_settings_of_a_search_lose_those_of_another_backend() -> None:
    class Sizes:
        def __init__(self, backend: str) -> None:
            self.backend = backend

    for backend in ("cpu", "metal", "cuda"):
        assert effective(SET, lambda _, b=backend: Sizes(b)) == {n: v for n, v in SET.items() if BACKENDS[n] == backend}
    assert effective(SET) == SET
