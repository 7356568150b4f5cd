"""Element types: their names in safetensors, their sizes, and numpy conversions to and from float32.

numpy has no bfloat16, so those conversions work on the upper 16 bits of float32.
"""

from __future__ import annotations

import numpy as np

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
HALF = ("F16", "BF16")
FP8 = "F8_E4M3"
MLX_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "U8": "uint8"}


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to the nearest values of BF16, F16 or F32. Returns float32, always a copy."""
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    rounded = np.array(values, np.float32)
    if dtype == "BF16":
        bits = rounded.view(np.uint32)
        up = bits >> 16
        up &= 1
        up += 0x7FFF
        bits += up
        bits &= 0xFFFF0000
    return rounded


def to_bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of float32 values in a file, uint8 [bytes], rounded to nearest."""
    if dtype == "BF16":
        upper = to_dtype(values, dtype).view(np.uint32) >> 16
        return upper.astype(np.uint16).view(np.uint8).reshape(-1)
    return np.ascontiguousarray(values, np.float16 if dtype == "F16" else np.float32).view(np.uint8).reshape(-1)


def from_bytes(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values of bytes in a file (uint8 [bytes]); the inverse of `to_bytes`."""
    if dtype == "BF16":
        return np.left_shift(stored.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return stored.view(np.float16).astype(np.float32) if dtype == "F16" else stored.view(np.float32)
