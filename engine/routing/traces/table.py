"""Table: the lines that a trace collects, as one Parquet table (see `engine.routing.record`), with its metadata.

Beside the columns of `engine.routing.record`, `predicted_D_N` is a list of the N experts that the router of the layer D
layers further on chooses for this layer's input, in the router's order; null but in the rows of rank 0 of a pass of one
token. Key-value metadata: model, fingerprint (of the checkpoint), num_experts, num_layers, top_k, source, lossy (the knobs
that the routing depends on, as JSON).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.system.strict_json import to_json

PHASES = np.array(["prefill", "decode", "warm_up_prefill", "warm_up_decode"])


def metadata_of(checkpoint: Checkpoint, source: str, lossy: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a trace of a run on `checkpoint`, whose path through the engine is `source`."""
    return {
        "model": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "num_experts": str(max(layer.experts for layer in checkpoint.layers)),
        "num_layers": str(len(checkpoint.layers)),
        "top_k": str(checkpoint.top_k),
        "source": f"headrace, {source}; layer 0 is {checkpoint.layers[0].block}",
        "lossy": to_json(dict(lossy)),
    }


class Lines:
    """Choices of a layer in a pass, collected line by line.

    `heads`, int64 [lines, 8]: first token, whether it is decoded, whether it belongs to a warm-up, pass, text, layer, rows
    and top-k. `experts` and `weights` (NaN where unknown) have the lines' choices one after the other.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = 0
        self.predicted: dict[str, dict[int, np.ndarray]] = defaultdict(dict)  # column -> line -> ids

    def add(
        self, heads: np.ndarray, shapes: np.ndarray, experts: np.ndarray, weights: np.ndarray,
        predicted: Iterable[tuple[tuple[int, str], np.ndarray]],
    ) -> None:  # fmt: skip
        """Add lines. `heads` begin with the token after the line and lack `shapes`, the rows and top-k; `predicted` gives
        the number of the line among them and the column of each prediction."""
        heads = np.column_stack([heads[:, 0] - shapes[:, 0], heads[:, 1:], shapes])
        self._parts.append((heads, experts.astype(np.int16), weights))
        for (line, column), ids in predicted:
            self.predicted[column][self._count + line] = ids.astype(np.int16)
        self._count += len(heads)

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All heads, experts and weights."""
        empty = (np.zeros((0, 8), np.int64), np.zeros(0, np.int16), np.zeros(0, np.float32))
        heads, experts, weights = (np.concatenate(part) for part in zip(empty, *self._parts, strict=True))
        return heads, experts, weights


def table_of(lines: Lines, warm_up_tokens: int, metadata: Mapping[str, str]) -> Any:
    """All rows, ordered by pass, token, layer and rank. The `warm_up_tokens` of the run have the numbers up to -1."""
    import pyarrow as pa

    heads, expert, weight = lines.joined()
    sizes = heads[:, 6] * heads[:, 7]
    line = np.repeat(np.arange(len(heads)), sizes)
    within = np.arange(len(expert)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first = heads[:, 0] - warm_up_tokens * heads[:, 2]
    token, place, layer, number = (
        first[line] + within // heads[line, 7],
        within % heads[line, 7],
        heads[line, 5],
        heads[line, 3],
    )
    order = np.lexsort((place, -np.nan_to_num(weight), layer, token, number))
    rank = place.astype(np.int16)[np.lexsort((place, layer, token, number))]
    phase = (heads[:, 1] + 2 * heads[:, 2])[line]
    columns = {
        "token": pa.array(token[order].astype(np.int32)),
        "phase": pa.array(PHASES[phase[order]], pa.large_string()),
        "layer": pa.array(layer[order].astype(np.int16)),
        "rank": pa.array(rank),
        "expert": pa.array(expert[order]),
        "gate_weight": pa.array(weight[order], pa.float32(), from_pandas=True),  # NaN becomes null
        "pass": pa.array(number[order].astype(np.int32)),
        "text": pa.array(heads[line, 4][order].astype(np.int32)),
    }
    for column, predicted in sorted(lines.predicted.items()):
        columns[column] = _lists(predicted, line[order], rank)
    return pa.table(columns).replace_schema_metadata(dict(metadata))


def _lists(predicted: Mapping[int, np.ndarray], line: np.ndarray, rank: np.ndarray) -> Any:
    """The predictions of lines as a column of lists, in the rows of rank 0."""
    import pyarrow as pa

    known = (rank == 0) & np.isin(line, np.fromiter(predicted, np.int64))
    rows = [predicted[number] for number in line[known].tolist()]
    sizes = np.zeros(len(line), np.int64)
    sizes[known] = [len(ids) for ids in rows]
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    values = pa.array(np.concatenate(rows) if rows else np.zeros(0, np.int16))
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(~known))
