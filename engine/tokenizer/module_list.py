"""Module list: the names in transformers' models, kept in the user's cache folder, because each process asks for them.

mlx-lm imports transformers for the tokenizer, and transformers reads the sources of all its models, 3,500 files, for the
names that may be imported later. That takes half of the 1.2 s of processor time of an import of mlx-lm. The list follows
from the version and the folders of the models. Development versions are read each time. `without_torch` calls this module,
so a library's user is not affected.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.errors import HeadraceError
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import cached_file, store_in_cache

MODULE, FUNCTION = "transformers.utils.import_utils", "define_import_structure"
FORMAT = 1  # raised when the file's content changes
Names = dict[frozenset[str], dict[str, set[str]]]  # what the modules require -> module -> names


class ListFinder(importlib.abc.MetaPathFinder):
    """Finds transformers' module as Python does, and puts `keeping` around its function once it is executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                if hasattr(module, FUNCTION):
                    setattr(module, FUNCTION, keeping(getattr(module, FUNCTION)))

            spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def keeping(own: Callable[..., Names]) -> Callable[..., Names]:
    """transformers' function, whose result for the folder of all models is kept."""

    def listed(module_path: Any, prefix: str | None = None) -> Names:
        folder = Path(module_path).parent if Path(module_path).name == "__init__.py" else Path(module_path)
        version = str(getattr(sys.modules.get("transformers"), "__version__", "dev"))
        if folder.parts[-2:] != ("transformers", "models") or "dev" in version:
            return own(module_path, prefix)
        file = list_file(folder, version)
        names = _read(file)
        if names is None:
            names = own(module_path, None)
            with contextlib.suppress(HeadraceError):  # a cache folder that cannot be written costs time only
                store_in_cache(file, _written(names))
        start = "" if prefix is None else f"{prefix}."
        return {needs: {start + module: of for module, of in modules.items()} for needs, modules in names.items()}

    return listed


def list_file(folder: Path, version: str) -> Path:
    """The file of a version's list, by its version and the entries of its folder."""
    identity = [FORMAT, version, sorted(os.listdir(folder))]
    return cached_file(f"transformers-{hashlib.sha256(to_json(identity).encode()).hexdigest()[:16]}.json")


def _written(names: Names) -> bytes:
    return to_json(
        [[sorted(needs), {m: sorted(of) for m, of in modules.items()}] for needs, modules in names.items()]
    ).encode()


def _read(file: Path) -> Names | None:
    """The list in a file; None if there is none or it is damaged."""
    try:
        content = from_json(file.read_text(encoding="utf-8"))
        return {frozenset(needs): {m: set(of) for m, of in modules.items()} for needs, modules in content}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def keep_module_list() -> None:
    """Let an import of transformers that is still to come use the list."""
    if MODULE not in sys.modules and not any(isinstance(finder, ListFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ListFinder())
