"""Native: compiled code that reads, converts and counts without the interpreter lock; never imports Python code.

The sources are the C++ files of this folder; `pip install` compiles them (setup.py). They use only Python's stable ABI.
`HEADRACE_NATIVE` names another build of the extension, for example one with a sanitizer (docs/developing.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .load import load

if TYPE_CHECKING:
    import engine.native._core as core
else:
    core = load()

__all__ = ["core"]
