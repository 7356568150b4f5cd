"""Fixtures of several rooms."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from one_core import one_core

# These test what several threads do at once.
ALL_CORES = ("native", "disk", "cache/", "packing/test_pack.py", "streaming/test_prefetch.py", "streaming/window")
# What these test does not depend on the predicted memory of a pass. Every model file of mlx-lm is traced in
# streaming/test_families.py, widths and layouts in test_identity.py.
NOT_TRACED = (
    "packing/", "streaming/test_gating.py", "streaming/test_generation_identity.py", "streaming/test_passes.py",
    "streaming/test_prefetch.py", "streaming/window/",
)  # fmt: skip
Make = Callable[..., Path]


def _inside(request: pytest.FixtureRequest, places: tuple[str, ...]) -> bool:
    return request.path.relative_to(Path(__file__).parent).as_posix().startswith(places)


@pytest.fixture(autouse=True)
def _one_core(request: pytest.FixtureRequest) -> Iterator[None]:
    if _inside(request, ALL_CORES):
        yield
        return
    with one_core():
        yield


@pytest.fixture
def packed(store: Make, tmp_path: Path) -> Path:
    """A private copy of a store."""
    return Path(shutil.copytree(store("qwen3_moe", 4), tmp_path / "packed"))


@pytest.fixture(autouse=True)
def _made_up_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a pass is about that of a tiny model; to trace one takes about as long as a test."""
    if _inside(request, NOT_TRACED):
        from engine.plan.memory import activations

        memory = activations.PassMemory(kv=1_000_000, activations=9_000_000)
        monkeypatch.setattr(activations, "pass_memory", lambda *_, **__: memory)


@pytest.fixture(autouse=True)
def _made_up_routing_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A routing profile that is missing is made up: to measure one takes a process, which `test_engine.py` tests."""
    monkeypatch.setattr("engine.routing.profile.compute_apart", _make_up)


def _make_up(*_: str, given: str) -> None:
    from engine import Checkpoint
    from engine.routing.profile import profile_file
    from engine.system.user_cache import store_in_cache

    source = Checkpoint.open(json.loads(given)["checkpoint"])
    experts = np.array([layer.experts for layer in source.layers])
    uses = np.random.default_rng(3).integers(1, 99, (len(experts), experts.max()))
    content = io.BytesIO()
    np.savez(content, uses=np.where(np.arange(experts.max()) < experts[:, None], uses, 0))
    store_in_cache(profile_file(source), content.getvalue())
