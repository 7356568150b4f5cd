"""Fixtures shared by all tests: user state goes to a temporary folder, tiny checkpoints are made once a session.

The process that hands the tests to the workers loads this file as well; what imports MLX is imported by the fixtures.
"""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import environment  # noqa: F401 (before numpy and matplotlib)
import pytest
from sparse_kimi import make_sparse_kimi

from engine.tokenizer.without_torch import show_torch

# Folders and files whose tests take long together; `make quick` leaves them out.
SLOW_ROOMS = (
    *(f"engine/{room}/" for room in ("bench", "generation", "measure", "model", "packing", "plan", "quality", "streaming")),
    *(f"engine/checkpoint/{file}.py" for file in ("test_fuzz", "store/test_records")),
    *(f"engine/test_{name}.py" for name in ("effective", "engine", "identity", "stats")),
    *(
        f"engine/{file}.py"
        for file in ("cli/test_chat", "cli/test_commands", "cli/test_text", "routing/test_record", "system/test_memory")
    ),
    *(f"harness/{room}/" for room in ("bench", "decisions", "propose", "rounds", "run", "session", "show", "study")),
    *(f"harness/analysis/test_{name}.py" for name in ("counts", "importance", "one_front")),
    *(f"harness/results/test_{name}.py" for name in ("merge", "older", "writing")),
    *("harness/space/test_changes.py", "harness/space/test_space.py", "harness/test_search.py"),
    *("experiments/", "notebooks/", "test_commands.py", "test_docs.py", "test_package.py"),
)


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Modules and tests live to the end: a collection need not look through them each time."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # with the default, 700, it searches for garbage all the time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first: one that began last would keep a single worker busy."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(SLOW_ROOMS):
            item.add_marker(pytest.mark.slow_room)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The routing profile and the like never touch the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _parameters_once() -> Iterator[None]:
    """mlx-lm asks for the parameters of a model's arguments once for each key of its configuration; they do not change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_lm.models.base.inspect", SimpleNamespace(signature=functools.cache(inspect.signature)))
        yield


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """Commands that run in the test's process hide torch; the GP sampler needs it."""
    yield
    show_torch()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(family, bits=None, per_expert=False, group_size=32)`: the folder of a tiny random checkpoint, made on
    first use. `bits` may also be "original", as the hub has it, "int4", as Kimi K2.5's is, or "fp8", as DeepSeek's are."""
    from tiny import make
    from tiny_originals import make_fp8, make_gpt_oss_original, make_int4, make_original

    made: dict[tuple[object, ...], Path] = {}

    def get(
        family: str = "deepseek_v3", bits: int | str | None = None, per_expert: bool = False, group_size: int = 32
    ) -> Path:
        key = (family, bits, per_expert, group_size)
        if key not in made:
            path = tmp_path_factory.mktemp("checkpoint") / f"{family}-{bits or 'bf16'}"
            if (family, bits) == ("gpt_oss", "original"):
                made[key] = make_gpt_oss_original(path)
            elif bits in ("original", "int4", "fp8"):
                made[key] = {"original": make_original, "int4": make_int4, "fp8": make_fp8}[str(bits)](path, family)
            else:
                made[key] = make(path, family, bits=bits, per_expert=per_expert, group_size=group_size)
        return made[key]

    return get


@pytest.fixture(scope="session")
def sparse_kimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kimi K2.5's original in its full shape, as sparse files; to be read only."""
    return make_sparse_kimi(tmp_path_factory.mktemp("sparse") / "kimi")


@pytest.fixture(scope="session")
def store(checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """`store(family, bits, ..., levels=None)`: the folder of the store packed from such a checkpoint, on first use."""
    from engine.packing.pack import pack_store

    def get(*model: object, levels: tuple[int, ...] | None = None) -> Path:
        source = checkpoint(*model)
        path = source.with_name(f"{source.name}-store-{'-'.join(map(str, levels or ()))}")
        if not path.exists():
            with mock.patch("os.fsync"):  # waits for the disk; durability is tested with stores of a test's own
                pack_store(source, path, levels)
        return path

    return get
