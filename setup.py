"""Packages of the wheel: the code, the extension, and the folders of the checkout that it ships as data below `headrace/`.

Everything else is in pyproject.toml. The data folders stay at the top of the checkout, where an editable install uses them;
`engine.system.shipped` is the one place that says where they are.

`HEADRACE_SANITIZE=address,undefined` or `HEADRACE_SANITIZE=thread` builds the extension with a sanitizer.
"""

import os
import platform
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

EXPERIMENTS = ("*.yaml", *(f"{group}/*.yaml" for group in ("device", "model", "prompts", "quality", "study")))
SANITIZE = os.environ.get("HEADRACE_SANITIZE", "")

read = runpy.run_path("engine/native/sources.py")
check = runpy.run_path("engine/native/compiler.py")
FILES = [path.relative_to(Path.cwd()) for path in read["sources"](Path.cwd() / "engine" / "native")]

FINGERPRINT = read["fingerprint"]()
MACROS: list[tuple[str, str | None]] = [("Py_LIMITED_API", "0x030B0000"), ("HEADRACE_SOURCES", f'"{FINGERPRINT}"')]
# Without fused multiply-add, packing gives the same bytes on every CPU. Vectors are passed between inlined functions alone.
FLAGS = ["-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-pthread"]
LINK = ["-pthread"]
EXTRA: list[str] = []
if SANITIZE:
    EXTRA = ["tests/engine/native/mistakes.cpp"]
    MACROS += [("HEADRACE_SANITIZE", None)]
    LINK += [f"-fsanitize={SANITIZE}"]
    if "address" in SANITIZE and "clang" in " ".join(check["command"]()):
        LINK += ["-shared-libsan"]  # gcc links the shared library by default
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g", "-UNDEBUG"]
    FLAGS += ["-fno-wrapv"]  # Python's own flags define the overflow of signed numbers, which hides it
else:
    MACROS += [("NDEBUG", None)]
    FLAGS += ["-O3"]
if sys.platform == "darwin":
    # MLX needs macOS 14 on Apple silicon. A universal Python would compile for older systems and for Intel as well.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
    FLAGS += ["-mmacosx-version-min=14.0"]
    LINK += ["-mmacosx-version-min=14.0"]

if sys.platform == "linux":
    LINK += ["-Wl,-Bsymbolic"]  # two builds in one process call their own functions: the first is seen by all libraries

NATIVE = Extension(
    "engine.native._core",
    [*(str(path) for path in FILES if path.suffix == ".cpp"), *EXTRA],
    depends=[*(str(path) for path in FILES if path.suffix == ".hpp"), "setup.py"],
    include_dirs=["engine/native"],
    define_macros=MACROS,
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
    language="c++",
    py_limited_api=True,
)


class Build(build):
    """The extension first, so that a missing compiler is found before files are copied."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")


class BuildExtension(build_ext):
    """A build that ends in one line where the compiler is missing or too old. `SystemExit` has no traceback, nor the hints
    that setuptools adds to errors of an editable install."""

    def build_extensions(self) -> None:
        problem = check["problem"](check["command"]())
        if problem:
            raise SystemExit(problem)
        compile_all = self.compiler.compile

        def compile_at_once(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                objects = threads.map(lambda source: compile_all([source], **options), sources)
                return [path for paths in objects for path in paths]

        self.compiler.compile = compile_at_once
        try:
            super().build_extensions()
        except CCompilerError:
            raise SystemExit("Headrace's C++ sources do not compile; the compiler's errors are above") from None

    def build_extension(self, ext: Extension) -> None:
        built = Path(self.get_ext_fullpath(ext.name))
        if built.exists() and FINGERPRINT.encode() not in built.read_bytes():
            self.force = True  # times do not show that a file was removed or renamed
        super().build_extension(ext)


setup(
    cmdclass={"build": Build, "build_ext": BuildExtension},
    ext_modules=[NATIVE],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    packages=[*find_packages(include=["engine*", "harness*"]), "headrace.experiments", "headrace.search_spaces"],
    package_dir={"headrace.experiments": "experiments", "headrace.search_spaces": "search_spaces"},
    package_data={
        "engine": ["py.typed"],
        "engine.native": ["_core.pyi"],
        "engine.routing": ["calibration.txt"],
        "engine.shapes": ["models/*.json"],
        "harness": ["py.typed"],
        "harness.forecast.world": ["*.json", "*.yaml"],
        "harness.show.page": ["*.css", "*.j2", "*.js"],
        "headrace.experiments": [*EXPERIMENTS, "kimi_mini/checkpoint/*"],
        "headrace.search_spaces": ["*.yaml"],
    },
)
