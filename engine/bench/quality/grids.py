"""bench grids: error of the levels of a packed record, beside MLX's own quantization and the smallest possible error.

The benchmark uses synthetic weights (Gaussian; Laplace and Student's t with 4 degrees of freedom, which have heavier tails)
and a checkpoint's experts, in groups of 32, 64 and 128. All figures are relative root mean square errors of the weights.
Scales and biases of synthetic weights are not rounded. The search for the best two-bit grid of a group tries every way to
cut the sorted weights into four runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.experts import AFFINE_GROUPS
from engine.checkpoint.store.bitplanes import unpack
from engine.packing.pack import block_size
from engine.packing.quantize import quantize
from engine.packing.sources import SourceLayer

LOW, HIGH = 2, 4  # the levels for which grids are shaped; at 6 and 8 bits there is nothing to gain
WEIGHTS = 1 << 20  # synthetic weights of each kind
LIMIT_WEIGHTS = {32: 1 << 16, 64: 1 << 15, 128: 1 << 13}  # weights for the best grid, which is slow
SMALLEST = 1e-7  # scale, as in mx.quantize
MLX = {"BF16": mx.bfloat16, "F32": mx.float32}
EVERY = 8  # every eighth expert of a checkpoint is used
DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "Gaussian": lambda rng, n: rng.standard_normal(n), "t (4)": lambda rng, n: rng.standard_t(4, n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
}  # fmt: skip
SHARES = {
    "min_max": "min-max", "prefix_of_mlx": "of MLX", "prefix": "prefix", "prefix_in_32": "in 32s", "best": "best",
}  # fmt: skip


def bench_grids(path: Path, weights: int = WEIGHTS) -> dict[str, Any]:
    """A row for each kind of weights and group size: relative root mean square errors; the errors of the prefix and of the
    best grid as shares of mx.quantize's at 2 bits, and the error of the whole as a share of mx.quantize's at 4."""
    rows = []
    rng = np.random.default_rng(0)
    for name, draw in DRAWS.items():
        drawn = draw(rng, weights).astype(np.float32)
        rows += [_row(name, drawn.reshape(-1, size), "F32") for size in AFFINE_GROUPS]
    for size in AFFINE_GROUPS:
        groups = list(_groups_of(path, size))
        if groups:
            rows.append(_row(Checkpoint.open(path, to_pack=True).architecture, np.concatenate(groups), "BF16"))
    _print(rows)
    return {"bench": "grids", "rows": rows}


def _groups_of(path: Path, size: int) -> Iterator[np.ndarray]:
    """float32 [groups, size] of some experts of a checkpoint, if its rows are multiples of `size`."""
    source = Checkpoint.open(path, to_pack=True)
    for layer in source.layers:
        numbers = SourceLayer(layer, block_size(source))
        for name, kind in numbers.kinds.items():
            fits = kind.columns % size == 0 and kind.mode != "affine"
            for expert in range(0, layer.experts if fits else 0, EVERY):
                stored = {}
                for t in numbers.tensors(name):
                    with open(source.files[t.file[expert]], "rb") as f:
                        f.seek(int(t.offset[expert]))
                        stored[t.name] = t.from_stored(np.frombuffer(f.read(t.stored_bytes), np.uint8))
                yield numbers.weights(name, stored).reshape(-1, size)


def _row(name: str, weights: np.ndarray, dtype: str) -> dict[str, Any]:
    energy, size = float(np.square(weights, dtype=np.float64).sum()), weights.shape[1]
    sample = weights[:: max(1, weights.size // LIMIT_WEIGHTS[size])]
    best_share = best_error(sample) / _squares(sample, _mlx(sample, LOW, dtype))
    packed = quantize(weights, (LOW, HIGH), dtype)
    by_mlx = mx.quantize(mx.array(weights).astype(MLX[dtype]), group_size=size, bits=HIGH)[0]
    mlx_codes = unpack(np.array(by_mlx).view(np.uint8).reshape(-1), HIGH).reshape(weights.shape)
    errors = {
        "min_max": _squares(weights, _min_max(weights)), "mlx_low": _squares(weights, _mlx(weights, LOW, dtype)),
        "prefix_of_mlx": _prefix(weights, mlx_codes), "prefix": _prefix(weights, packed.codes),
        "prefix_in_32": _prefix(weights.reshape(-1, 32), packed.codes.reshape(-1, 32)),
        "best": _squares(weights, _mlx(weights, LOW, dtype)) * best_share,
        "mlx_high": _squares(weights, _mlx(weights, HIGH, dtype)), "whole": packed.errors[1],
    }  # fmt: skip
    row: dict[str, Any] = {"weights": name, "group_size": size}
    row |= {key: float(np.sqrt(error / energy)) for key, error in errors.items()}
    shares = {f"{key}_share": row[key] / row["mlx_low"] for key in SHARES}
    return row | shares | {"whole_share": row["whole"] / row["mlx_high"]}


def _squares(weights: np.ndarray, rounded: np.ndarray) -> float:
    return float(np.square(rounded - weights, dtype=np.float64).sum())


def _min_max(weights: np.ndarray) -> np.ndarray:
    low, high = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    scale = np.maximum((high - low) / ((1 << LOW) - 1), SMALLEST)
    return np.rint((weights - low) / scale) * scale + low


def _mlx(weights: np.ndarray, bits: int, dtype: str) -> np.ndarray:
    codes, scales, biases = mx.quantize(mx.array(weights).astype(MLX[dtype]), group_size=weights.shape[1], bits=bits)
    wide = scales.astype(mx.float32), biases.astype(mx.float32)
    return np.array(mx.dequantize(codes, *wide, group_size=weights.shape[1], bits=bits))


def _prefix(weights: np.ndarray, codes: np.ndarray) -> float:
    """Squared error of the upper bits of codes with their best scale and bias."""
    upper = (codes >> (HIGH - LOW)).astype(np.float64)
    upper -= upper.mean(axis=1, keepdims=True)
    values = weights - weights.mean(axis=1, keepdims=True, dtype=np.float64)
    together, spread = np.vecdot(values, upper), np.vecdot(upper, upper)
    return float((values**2).sum() - (together**2 / np.where(spread > 0, spread, np.inf)).sum())


def best_error(weights: np.ndarray) -> float:
    """The smallest squared error possible with four evenly spaced values, chosen for each group."""
    size = weights.shape[1]
    cuts = np.arange(size + 1)
    first, second, third = (c.reshape(-1) for c in np.meshgrid(cuts, cuts, cuts, indexing="ij"))
    ordered = (first <= second) & (second <= third)
    first, second, third = first[ordered], second[ordered], third[ordered]
    counts = size - np.stack([first, second, third])
    h, hh = counts.sum(axis=0), (counts * np.array([[1], [3], [5]])).sum(axis=0)  # sums over the codes 0 to 3
    spread = np.where((rest := hh - h**2 / size) > 0, rest, np.inf)
    total = 0.0
    for group in np.sort(weights.astype(np.float64), axis=1):
        group -= group.mean()
        behind = np.append(np.cumsum(group[::-1])[::-1], 0.0)
        together = behind[first] + behind[second] + behind[third]
        total += float((group**2).sum() - (together**2 / spread).max())
    return total


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="relative RMSE of mx.quantize, and shares of it", box=None, pad_edge=False)
    for title in ("weights", "of", "2 bits", *SHARES.values(), "4 bits", "whole"):
        table.add_column(title, justify="left" if title == "weights" else "right", no_wrap=True)
    for row in rows:
        shares = (f"{row[f'{key}_share']:.3f}" for key in SHARES)
        high = f"{row['mlx_high']:.4f}", f"{row['whole_share']:.3f}"
        table.add_row(row["weights"], str(row["group_size"]), f"{row['mlx_low']:.4f}", *shares, *high)
    console = Console()
    console.print(table)
    console.print(
        "at 2 bits: min to max; prefix of mx.quantize's 4 bits; prefix of a record, and with scales for groups of 32; best "
        "possible 2-bit grid. At 4 bits: the whole record."
    )
