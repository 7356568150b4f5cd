"""Sanitizers: builds the extension with each, proves that it reports mistakes, and runs tests/engine/native with it.

    make sanitize
    make sanitize ARGS="thread -k reader"

The first word may be `address` (with undefined behaviour and leaks) or `thread`; the others go to pytest. Builds go to
build/SANITIZER; `HEADRACE_NATIVE` makes the engine load them. Python itself is not instrumented, so the sanitizer's library
is preloaded, and only those leaks count that have a function of the extension in their stack.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.native.compiler import command  # noqa: E402 - no package needs to be installed for it

MAC = sys.platform == "darwin"
TESTS = ROOT / "tests" / "engine" / "native"
NOT_NATIVE = ("test_compiler.py", "test_load.py", "test_sources.py")  # tests of Python modules
OURS = "engine/native/"  # in the stack of a leak
# The tests need neither MLX nor the fixtures of tests/conftest.py. Reports of undefined behaviour go to standard error.
PLUGINS = ("-p", "no:xdist", "-p", "no:cacheprovider")
PYTEST = ("-m", "pytest", "--noconftest", "--capture=sys", *PLUGINS, "--timeout=1800", "--durations=5")


@dataclass(frozen=True)
class Sanitizer:
    """A sanitizer by its name here, the compiler's words for it, and a text of its report for each mistake."""

    name: str
    flags: str
    library: str
    mistakes: dict[str, str]


SANITIZERS = {
    "address": Sanitizer(
        "address",
        "address,undefined",
        "asan",
        {
            "overrun": "heap-buffer-overflow",
            "use after free": "heap-use-after-free",
            "overflow": "signed integer overflow",
            **({} if MAC else {"leak": "leak of 4321 byte"}),
        },
    ),
    "thread": Sanitizer("thread", "thread", "tsan", {"race": "data race"}),
}


def main(words: Sequence[str]) -> int:
    """The exit status: 0 if each sanitizer reports its mistakes and nothing in the tests."""
    one = words[:1] if words and words[0] in SANITIZERS else ()
    return max([check(SANITIZERS[name], words[len(one) :]) for name in one or SANITIZERS])


def check(sanitizer: Sanitizer, arguments: Sequence[str]) -> int:
    folder = ROOT / "build" / sanitizer.name
    build(sanitizer, folder)
    for mistake, text in sanitizer.mistakes.items():
        code = f"from engine.native import core; core.mistake({mistake!r})"
        status, report = run(sanitizer, folder, ["-c", code], capture=True)
        if status == 0 or text not in report:
            print(f"{sanitizer.name}: the mistake {mistake!r} is not reported\n{report}")
            return 1
    print(f"{sanitizer.name}: reports {', '.join(sanitizer.mistakes)}", flush=True)
    files = [str(p.relative_to(ROOT)) for p in sorted(TESTS.rglob("test_*.py")) if p.name not in NOT_NATIVE]
    status, report = run(sanitizer, folder, [*PYTEST, *files, *arguments])
    print(f"{report}{sanitizer.name}: {'FAILED' if status else 'passed'}", flush=True)
    return status


def build(sanitizer: Sanitizer, folder: Path) -> None:
    words = ["setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder / "objects")]
    env = {**os.environ, "HEADRACE_SANITIZE": sanitizer.flags}
    if subprocess.run([sys.executable, *words], cwd=ROOT, env=env).returncode:
        sys.exit(1)


def run(sanitizer: Sanitizer, folder: Path, words: Sequence[str], capture: bool = False) -> tuple[int, str]:
    """The exit status of Python with the sanitizer, and what the sanitizer reports. A report makes the status 1. `capture`
    adds the output to the report."""
    for old in folder.glob("report.*"):
        old.unlink()
    extension = folder / "engine" / "native" / "_core.abi3.so"
    log = f"log_path={folder / 'report'}"
    env = {
        **os.environ,
        "HEADRACE_NATIVE": str(extension),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONMALLOC": "malloc",
        # Leaks do not change the exit status, since the interpreter has some; `findings` looks for ours.
        "ASAN_OPTIONS": f"abort_on_error=1:exitcode=0:detect_leaks={int(not MAC)}:{log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:{log}",
        "TSAN_OPTIONS": f"die_after_fork=0:{log}",
        "DYLD_INSERT_LIBRARIES" if MAC else "LD_PRELOAD": " ".join(libraries(sanitizer, extension)),
    }
    done = subprocess.run([*fixed_addresses(), sys.executable, *words], cwd=ROOT, env=env, capture_output=capture, text=True)
    report = "".join(findings(path.read_text(errors="replace")) for path in sorted(folder.glob("report.*")))
    return done.returncode or int(bool(report)), report + (done.stdout + done.stderr if capture else "")


def findings(report: str) -> str:
    """A report without the leaks of the interpreter."""
    if "LeakSanitizer" not in report:
        return report
    leaks = [leak for leak in report.split("\n\n") if " leak of " in leak and OURS in leak]
    return "".join(f"{leak.strip()}\n\n" for leak in leaks)


def libraries(sanitizer: Sanitizer, extension: Path) -> list[str]:
    """The sanitizer's library, which is to be loaded before Python. On Linux also that of C++, whose functions for
    exceptions the sanitizer looks up at its start."""
    if MAC:
        return [file_of(f"libclang_rt.{sanitizer.library}_osx_dynamic.dylib")]
    linked = subprocess.run(["ldd", str(extension)], capture_output=True, text=True).stdout
    found = re.search(rf"/\S*(lib|rt\.){sanitizer.library}\S*", linked)
    runtime = found[0] if found else file_of(f"libclang_rt.{sanitizer.library}-{platform.machine()}.so")
    cpp = re.search(r"/\S*libstdc\+\+\S*", linked)
    return [runtime, *([cpp[0]] if cpp else [])]


def file_of(library: str) -> str:
    """A library by the compiler's own search."""
    return subprocess.run([*command(), f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()


def fixed_addresses() -> list[str]:
    """A prefix for commands: the thread sanitizer of older compilers cannot place its memory where Linux chooses addresses
    with more than 28 random bits."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    return ["setarch", "-R"] if bits.exists() and int(bits.read_text()) > 28 else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
