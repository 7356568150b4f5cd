"""Structure of the source: imports run one way, files and classes stay small, and every module has a test file.

Imports inside functions and under TYPE_CHECKING count. A failure prints the names that break the rule.
"""

from __future__ import annotations

import ast
import functools
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "harness")

# Each room imports only rooms and root files that stand before it.
ORDER = {
    "engine": (
        "errors", "needs", "knobs", "effective", "stats", "system", "native", "checkpoint", "shapes", "tokenizer", "packing",
        "disk", "model", "routing", "cache", "measure", "setting", "plan", "streaming", "replay", "cache_state",
        "generation", "prompt_cache", "engine", "quality", "serve", "cli", "bench", "__main__",
    ),
    "harness": (
        "__init__", "paths", "numerics", "results", "schema", "machine", "space", "study", "analysis", "decisions",
        "best", "propose", "run", "show", "compare", "doctor", "forecast", "rehearse", "rounds", "session", "status",
        "report", "merge", "search", "bench", "cli",
    ),
}  # fmt: skip
LONGEST_FILE, LONGEST_CLASS, MEDIAN_FILE, ROOT_FILES, ROOM_FILES = 350, 200, 130, 8, range(3, 10)
NATIVE_FILES = 12  # a C++ file that binds names for Python is apart from the code that threads run


@functools.cache
def modules() -> dict[str, Path]:
    """Module name -> file, of both packages."""
    files = [p for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in files}


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@functools.cache
def native() -> list[Path]:
    """The C++ files and headers."""
    return sorted((ROOT / "engine" / "native").rglob("*.[ch]pp"))


def module_of(name: str) -> str | None:
    return name if name in modules() else f"{name}.__init__" if f"{name}.__init__" in modules() else None


@functools.cache
def imports() -> dict[str, dict[str, set[str]]]:
    """Module -> imported module -> names taken from it."""
    found: dict[str, dict[str, set[str]]] = {m: defaultdict(set) for m in modules()}
    for module in modules():
        package = module.split(".")[:-1]
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Import):
                targets = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
                targets = [(f"{stem}.{a.name}" if module_of(f"{stem}.{a.name}") else stem, a.name) for a in node.names]
            else:
                continue
            for target, name in targets:
                found_module = module_of(target)
                if found_module and found_module != module:
                    found[module][found_module].add(name)
    return found


def room(module: str) -> str:
    """`engine.disk.reader` -> `disk`; a root file is a room of one file."""
    return module.split(".")[1]


def circles() -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan). The facades `__init__` re-export and are left out."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in imports()[module]:
            if target.endswith("__init__"):
                continue
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in modules():
        if module not in index and not module.endswith("__init__"):
            visit(module)
    return found


def test_no_circle_of_imports() -> None:
    assert not circles(), "\n".join(" <-> ".join(c) for c in circles())


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_one_way(package: str) -> None:
    order = {name: i for i, name in enumerate(ORDER[package])}
    mine = [m for m in modules() if m.startswith(f"{package}.")]
    facade = f"{package}.__init__" if package not in ORDER or "__init__" not in order else ""
    unknown = sorted({room(m) for m in mine} - set(order) - {"__init__"})
    assert not unknown, f"{package}: {unknown} are in no order of tests/test_structure.py"
    upward = [
        f"{m} imports {', '.join(sorted(names))} of {t}"
        for m in mine
        if m != facade
        for t, names in imports()[m].items()
        if t.startswith(f"{package}.") and t != facade and order[room(t)] > order[room(m)]
    ]
    assert not upward, "\n".join(upward)


def test_engine_never_imports_harness() -> None:
    mine = [m for m in modules() if m.startswith("engine.")]
    wrong = [f"{m} imports {t}" for m in mine for t in imports()[m] if t.startswith("harness.")]
    assert not wrong, "\n".join(wrong)


def test_neither_optuna_nor_hydra_in_the_engine() -> None:
    wrong = []
    for module in (m for m in modules() if m.startswith("engine.")):
        for node in ast.walk(tree(module)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            wrong += [f"{module} imports {n}" for n in names if n.split(".")[0] in ("optuna", "hydra", "omegaconf")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_few_files_at_the_root_and_few_in_a_room(package: str) -> None:
    files = [p.name for p in (ROOT / package).glob("*.py")]
    assert len(files) <= ROOT_FILES, sorted(files)
    rooms = [p.parent for p in (ROOT / package).rglob("__init__.py") if p.parent != ROOT / package]
    counts = {str(r.relative_to(ROOT)): len([p for p in r.glob("*.py") if p.name != "__init__.py"]) for r in rooms}
    wrong = {name: count for name, count in counts.items() if count not in ROOM_FILES}
    assert not wrong, wrong


def test_few_sources_in_a_folder_of_native() -> None:
    """A source with its header counts once; `module` only lists the others."""
    counts = Counter(path.parent for path in {path.with_suffix("") for path in native()} if path.name != "module")
    wrong = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > NATIVE_FILES}
    assert not wrong, wrong


def test_every_folder_of_native_is_tested() -> None:
    """Compiled code is tested through the names that it gives to Python; a test file's docstring names the folders."""
    docstrings = [ast.get_docstring(ast.parse(p.read_text())) or "" for p in (ROOT / "tests" / "engine").rglob("test_*.py")]
    folders = {str(p.parent.relative_to(ROOT)) for p in native()} - {"engine/native"}
    untested = [f for f in sorted(folders) if not any(re.search(rf"{f}\b", text) for text in docstrings)]
    assert not untested, f"named by no docstring of a test file: {untested}"


def test_every_room_states_its_contract() -> None:
    silent = [m for m in modules() if m.endswith("__init__") and len(ast.get_docstring(tree(m)) or "") < 40]
    assert not silent, silent


def test_files_and_classes_stay_small() -> None:
    lines = {m: p.read_text(encoding="utf-8").count("\n") for m, p in modules().items()}
    cpp = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8").count("\n") for p in native()}
    long_files = [f"{m}: {n} lines" for m, n in (lines | cpp).items() if n > LONGEST_FILE]
    classes = [(m, n) for m in modules() for n in ast.walk(tree(m)) if isinstance(n, ast.ClassDef)]
    lengths = {f"{m}.{n.name}": (n.end_lineno or 0) - n.lineno + 1 for m, n in classes}
    long_classes = [f"{name}: {n} lines" for name, n in lengths.items() if n > LONGEST_CLASS]
    assert not long_files + long_classes, "\n".join(long_files + long_classes)
    assert statistics.median(lines.values()) <= MEDIAN_FILE


def test_every_module_with_logic_has_a_test_file() -> None:
    """Logic: a function or a method with a branch or a loop."""
    branches = (ast.If, ast.For, ast.While, ast.Try, ast.IfExp, ast.comprehension, ast.BoolOp, ast.Match)
    missing = []
    for module in modules():
        functions = [n for n in ast.walk(tree(module)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        if not any(isinstance(n, branches) for f in functions for n in ast.walk(f)):
            continue
        path = modules()[module].relative_to(ROOT)
        name = f"test_{path.stem.strip('_')}.py" if path.stem != "__init__" else f"test_{path.parent.name}.py"
        if not (ROOT / "tests" / path.parent / name).exists():
            missing.append(f"{path}: tests/{path.parent}/{name}")
    assert not missing, f"{len(missing)} modules without a test file:\n" + "\n".join(missing)
