"""Revision: finds names of the engine wherever the revision of a checkout has them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

FORCED_ROUTING = (
    ("engine.bench.decoding.forced_routing", "ForcedRouting"), ("engine.bench.decode", "ForcedRouting"),
    ("engine.bench.decode", "Forced"),
)  # fmt: skip
READ_TRACE = (("engine.routing.read", "read_trace"), ("engine.replay", "read_trace"))


def find(places: tuple[tuple[str, str], ...]) -> Any:
    """The first (module, name) that exists. Raises `LookupError`."""
    for module, name in places:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as e:
            if not module.startswith(f"{e.name}"):  # the module is there and lacks one of its own imports
                raise
        except AttributeError:
            continue
    raise LookupError(f"this checkout has none of {', '.join(f'{module}.{name}' for module, name in places)}")


def part(owner: Any, *names: str) -> Any:
    """The first attribute of `owner` that exists and is not None, by its names in the revisions; None without one."""
    for name in names:
        found = owner
        for step in name.split("."):
            found = getattr(found, step, None)
        if found is not None:
            return found
    return None


def load(model: str, knobs: dict[str, Any]) -> Any:
    """An engine of this checkout."""
    engine = import_module("engine")
    return engine.load(model, engine.Knobs(**knobs))


def forced_routing(engine: Any, trace: str, recall: list[float] | None) -> Any:
    """The engine with its routing forced from a recorded trace."""
    return find(FORCED_ROUTING)(engine, find(READ_TRACE)(Path(trace)), recall)
