"""Environment of the tests and of the processes that they start, set before numpy and matplotlib are imported.

The cache folder of the tests (`conftest.py`) is new in every session, and Matplotlib would build its font cache there each
time; so the font cache has a folder that stays. Workers share the cores, so each computes in one thread. Bytecode is kept,
since the hundreds of processes would each compile all modules.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir(), f"headrace-tests-matplotlib-{os.getuid()}")))
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(name, "1")
