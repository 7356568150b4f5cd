"""Without torch: importing this module hides an installed torch from mlx-lm's import, which does not need it, and lets
transformers take its names from a list that is kept (`module_list`).

mlx-lm imports transformers for the tokenizer, and transformers imports torch, triton, SciPy and scikit-learn wherever they
are installed. Imports took 11 to 14 s of every process on a machine that has them, and 2.5 to 4.5 s without. Entry points of
our own processes import this module first. A library's user is not affected: `import engine` does not import it.
"""

from __future__ import annotations

import sys

from .module_list import keep_module_list

keep_module_list()
if "torch" not in sys.modules:
    sys.modules["torch"] = None  # type: ignore[assignment]  # find_spec returns None, and an import fails


def show_torch() -> None:
    """Allow imports of torch again, for code that is not ours."""
    if sys.modules.get("torch", sys) is None:
        del sys.modules["torch"]
