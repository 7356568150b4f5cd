"""Native: compiled code that reads, converts and keeps statistics without the interpreter lock; never imports Python code.

The sources are the C++ files of this folder; `pip install` compiles them (setup.py). They use only Python's stable ABI.
`HEADRACE_NATIVE` names another build of the extension, for example one with a sanitizer (docs/developing.md).
"""

from __future__ import annotations

from .load import load

core = load()

__all__ = ["core"]
