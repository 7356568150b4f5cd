"""Native: compiled code that reads, converts and counts without the interpreter lock; never imports Python code.

The sources are the C++ files of this folder; `pip install` compiles them (setup.py). They use only Python's stable ABI.
"""

from engine.errors import HeadraceError

try:
    import engine.native._core as core
except ImportError as e:
    raise HeadraceError(
        f"the compiled part of Headrace is missing ({e}); install it again with a C++ compiler: pip install ."
    ) from e

__all__ = ["core"]
