"""The wheel: built, installed to a folder of its own, and used from an empty folder, as after `pip install headrace`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from setuptools import Distribution

from engine import __version__
from engine.native import core

ROOT = Path(__file__).resolve().parents[1]
FAKE_ENGINE = ROOT / "tests" / "harness"
SOURCES = (
    "LICENSE", "MANIFEST.in", "README.md", "engine", "experiments", "harness", "pyproject.toml", "search_spaces", "setup.py",
)  # fmt: skip
Headrace = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.slow


@pytest.fixture
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to the sources, so that no build folder is left in the checkout."""
    return _links(tmp_path_factory.mktemp("sources"))


def _links(place: Path) -> Path:
    for name in SOURCES:
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built beside links to the sources, with the extension of this checkout, which setup.py compiled as well."""
    place = _links(tmp_path_factory.mktemp("sources"))
    build = Distribution().get_command_obj("build")
    build.ensure_finalized()
    built = place / build.build_platlib / "engine" / "native"
    built.mkdir(parents=True)
    shutil.copy(str(core.__file__), built)  # newer than its sources, so the build takes it
    isolation = ["--no-build-isolation"] if int(version("setuptools").split(".")[0]) >= 77 else []  # else from the network
    options = ["--no-deps", *isolation, "--config-settings=--build-option=--compression=stored"]  # compression takes seconds
    command = [sys.executable, "-m", "pip", "wheel", "-q", *options, "-w", str(place / "dist"), str(place)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=250)
    if built.returncode and not isolation:
        pytest.skip("setuptools is older than 77, and no newer one can be fetched; pip install -e '.[dev]'")
    assert built.returncode == 0, built.stderr
    return next((place / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def headrace(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Headrace:
    """`headrace(*words, cwd=folder)`: run the installed console script, or `python WORDS` with `python=True`."""
    place = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run(command, check=True, timeout=120)

    def run(*words: str, cwd: Path, python: bool = False) -> subprocess.CompletedProcess[str]:
        program = [sys.executable] if python else [sys.executable, str(place / "bin" / "headrace")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(place), str(FAKE_ENGINE)))}
        return subprocess.run([*program, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=120)

    return run


def test_what_the_wheel_has(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [*ROOT.glob("search_spaces/*.yaml"), *ROOT.glob("experiments/**/*.yaml")]
    shipped += ROOT.glob("experiments/kimi_mini/checkpoint/*")
    assert {f"headrace/{p.relative_to(ROOT)}" for p in shipped} <= names
    assert [n for n in names if n.startswith("engine/native/_core.")] and not any(
        n.endswith((".cpp", ".hpp")) for n in names
    )
    assert "-cp311-abi3-" in wheel.name
    code = {str(p.relative_to(ROOT)) for package in ("engine", "harness") for p in ROOT.glob(f"{package}/**/*.py")}
    assert (
        code | {"engine/py.typed", "engine/native/_core.pyi", "harness/py.typed", "engine/routing/calibration.txt"} <= names
    )
    assert {name.partition("/")[0] for name in names} == {
        "engine", "harness", "headrace", f"headrace-{__version__}.dist-info",
    }  # fmt: skip
    metadata = zipfile.ZipFile(wheel).read(f"headrace-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata and "\nLicense-Expression: Apache-2.0\n" in metadata


def test_the_source_distribution_has_the_sources(sources: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", "dist", "--formats=tar"]  # compression takes seconds
    subprocess.run(command, cwd=sources, check=True, capture_output=True, timeout=120)
    with tarfile.open(next((sources / "dist").glob("*.tar"))) as packed:
        names = packed.getnames()
    native = {str(p.relative_to(ROOT)) for p in ROOT.glob("engine/native/**/*.[ch]pp")}
    assert native <= {name.partition("/")[2] for name in names}


@pytest.mark.parametrize("editable", [False, True])
def test_without_a_compiler_one_line_says_what_to_install(sources: Path, tmp_path: Path, editable: bool) -> None:
    """As pip calls the build; a path without programs has no compiler."""
    call = f"build_{'editable' if editable else 'wheel'}({str(tmp_path)!r})"
    command = [sys.executable, "-c", f"from setuptools import build_meta; build_meta.{call}"]
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX")} | {"PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=sources, env=env, capture_output=True, text=True, timeout=120)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("Headrace needs a C++ compiler, and ") and "Traceback" not in done.stderr
    assert all(words in last for words in ("apt install g++", "dnf install gcc-c++", "xcode-select --install"))


def test_a_study_from_an_empty_folder(headrace: Headrace, tmp_path: Path) -> None:
    """Version, shipped data, sizes of the shipped model, and a search on a fake engine; results go to the current folder."""
    assert headrace("--version", cwd=tmp_path).stdout == f"headrace {__version__}\n"
    assert json.loads(headrace("shapes", "deepseek_v4_pro", cwd=tmp_path).stdout)["layers"] == 61
    measured = ["-c", "from harness.forecast.world.measurements import world; print(len(world()))"]
    assert int(headrace(*measured, cwd=tmp_path, python=True).stdout) >= 15
    sizes = headrace("inspect", "--expert-bits", "4", cwd=tmp_path)
    assert sizes.returncode == 0 and json.loads(sizes.stdout)["one_token_gb"] > 0
    words = ["study=demo", "budget.trials=2", "engine.module=fake_engine", "sentinel.every=0", "confirm.share=0"]
    words += ["guards.wait_s=0", "guards.max_load=99", "guards.alone=false", "guards.keep_awake=false"]
    done = headrace("search", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
    assert (tmp_path / "results" / "demo" / "trials.parquet").exists() and "recommended settings" in done.stdout


def test_own_files_are_found(headrace: Headrace, tmp_path: Path) -> None:
    """A study and its space in the current folder, and the same by --config-dir; the module as well as the script."""
    for place in (tmp_path, tmp_path / "elsewhere" / "config"):
        (place / "study").mkdir(parents=True)
        (place / "search_spaces").mkdir()
        (place / "study" / "mine.yaml").write_text(
            "# @package _global_\ndefaults:\n  - override /search_space: small\nstudy: {name: mine}\n"
        )
        (place / "search_spaces" / "small.yaml").write_text("cache_gb: [0.01, 0.02]\n")
    module = ["-m", "harness.search"]
    for found in (
        headrace(*module, "study=mine", "--cfg", "job", cwd=tmp_path, python=True),
        headrace("search", "study=mine", "--config-dir=config", "--cfg", "job", cwd=tmp_path / "elsewhere"),
    ):
        assert found.returncode == 0, found.stderr
        assert "name: mine" in found.stdout and "search_space:\n  cache_gb:\n  - 0.01\n" in found.stdout
