"""Types of the extension's functions, in the order of the C++ files that bind them."""

from collections.abc import Sequence

import numpy as np
from typing_extensions import Buffer

Memory = Buffer | np.ndarray

SOURCES: str
COMPILER: str

def crc32(data: Memory, crc: int = 0, /) -> int: ...
def widen(codes: Memory, out: Memory, dtype: str, /) -> None: ...
def join_planes(streams: Sequence[Memory], bits: int, out: Memory, /) -> None: ...
def halve_planes(stream: Memory, bits: int, upper: Memory, lower: Memory, /) -> None: ...
def derive_biases(scales: Memory, zero: float, biases: Memory, dtype: str, /) -> None: ...
