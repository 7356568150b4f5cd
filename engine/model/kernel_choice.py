"""Kernel choice: how many rows of a prompt to compute at once, so that MLX takes the kernel that it takes for all of them.

Kernels round differently. A row's result does not depend on the rows beside it, but a GPU's kernel is chosen by their
number. A streamed prompt is computed in parts where its experts do not fit into the slots, the resident model's whole.
The rules are those of the sources of MLX 0.32.0 to 0.32.2 and of mlx-lm 0.32.2:

- mlx-lm sorts the rows of a switch by expert from SORTED rows on (mlx_lm/models/switch_layers.py).
- CUDA: a product with quantized experts has another kernel below CUDA_FEW rows (GatherQMM::eval_gpu in
  mlx/backend/cuda/quantized/quantized.cpp), one with plain experts if the rows are sorted (GatherMM::eval_gpu in
  mlx/backend/cuda/matmul.cpp).
- Metal: a product with quantized experts has another kernel for sorted rows, if there are at least METAL_ROWS for each
  expert that the switch holds (GatherQMM::eval_gpu in mlx/backend/metal/quantized.cpp), one with plain experts if the rows
  are sorted (GatherMM::eval_gpu in mlx/backend/metal/matmul.cpp).

The CPU backend computes each row by itself. This module imports no MLX.
"""

from __future__ import annotations

SORTED, CUDA_FEW, METAL_ROWS = 64, 8, 4


def parts_alike(backend: str, rows: int, total: int, *, experts: int, slots: int, quantized: bool) -> tuple[int, int]:
    """How to compute `rows` of the `total` rows of a prompt: in how many parts, and the least number of rows of each part,
    to which a smaller one has to be filled up. `experts`: of the resident model's switch; `slots`: of the streamed one."""
    is_sorted = total >= SORTED
    if backend == "cpu":
        return 1, 0
    if not quantized:
        return 1, SORTED if is_sorted else 0
    if backend == "cuda":
        return 1, CUDA_FEW if total >= CUDA_FEW else 0
    if is_sorted and total // experts >= METAL_ROWS:
        return 1, max(SORTED, METAL_ROWS * slots)
    return (-(-rows // (METAL_ROWS * slots - 1)), 0) if is_sorted else (1, 0)
