"""CPU device: makes MLX compute on the CPU in every process of this environment in which HEADRACE_TEST_DEVICE is cpu.

    HEADRACE_TEST_DEVICE=cpu .venv/bin/python tests/cpu_device.py

MLX has no environment variable for its device, and the suite starts child processes. So this writes a .pth file, which
Python runs when it starts, into the environment's site-packages. The exact figures in the tests are those of the CPU.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

FILE = Path(sysconfig.get_path("purelib")) / "headrace_test_device.pth"
LINE = (
    "import os; os.environ.get('HEADRACE_TEST_DEVICE') == 'cpu' and "
    "exec('import mlx.core as mx; mx.set_default_device(mx.Device(mx.cpu))')\n"
)

if __name__ == "__main__":
    FILE.write_text(LINE)
    print(f"wrote {FILE}")
