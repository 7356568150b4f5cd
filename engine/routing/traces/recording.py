"""Recording: the passes of a run, from a trace or made up, in the order in which a replay repeats them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import HeadraceError, first_line
from engine.routing.read import COLUMNS
from engine.system.strict_json import from_json

from .ahead import COLUMN

OLDER = "it has no passes and no warm-up: an earlier version recorded it"


@dataclass(frozen=True)
class Pass:
    """The tokens from `begin` to before `end` of a recording, computed in one pass."""

    begin: int
    end: int
    decode: bool
    warm_up: bool


@dataclass(frozen=True)
class Recording:
    """The choices of a run, pass by pass.

    `experts` is int32 [tokens, layers, top-k], -1 where a layer was not computed. `passes`, int64 [passes, 4], has the token
    after each pass, whether it decodes, whether it belongs to the warm-up, and its text. `predicted` maps (distance, number
    of experts) to int32 [tokens, layers, number], what each layer predicts for the layer that many layers further on; -1
    where nothing is recorded. `lossy` are the knobs of the run that the routing depends on, None if they are not known, and
    `fingerprint` is the checkpoint's. `lacks`: what an exact replay needs and the trace does not have; empty if nothing.
    """

    source: str
    experts: np.ndarray
    passes: np.ndarray
    predicted: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)
    lossy: Mapping[str, Any] | None = None
    fingerprint: str | None = None
    lacks: str = ""

    @classmethod
    def made_up(cls, experts: np.ndarray, prefilled: int = 0, source: str = "a made-up trace") -> Recording:
        """One text of the choices `experts`, int [tokens, layers, top-k]: a prompt of `prefilled` tokens, then decoding."""
        experts = np.array(experts, np.int32)
        prompt = np.array([[prefilled, 0, 0, 0]][: bool(prefilled)], np.int64).reshape(-1, 4)
        ends = np.arange(prefilled + 1, len(experts) + 1)
        decoded = np.column_stack([ends, np.ones_like(ends), np.zeros_like(ends), np.zeros_like(ends)])
        return cls(source, experts, np.concatenate([prompt, decoded]))

    @property
    def shape(self) -> str:
        tokens, layers, top_k = self.experts.shape
        return f"{tokens} tokens, {layers} layers, top-{top_k}, experts up to {self.experts.max()}"

    @property
    def in_part(self) -> bool:
        """Whether a layer was computed for a part of the tokens of a pass only."""
        begins = np.concatenate([[0], self.passes[:-1, 0]])
        counts = np.add.reduceat(self.experts[..., 0] >= 0, begins, axis=0, dtype=np.int64)
        return bool(((counts > 0) & (counts < (self.passes[:, 0] - begins)[:, None])).any())

    def in_chunks(self, chunk: int | None) -> Iterator[Pass]:
        """Yield the passes; the prompts in passes of `chunk` tokens, or as recorded.

        Passes of a prompt that did not compute the same layers stay apart, and so does one that computed a layer for a part
        of its tokens only.
        """
        begin = 0
        waiting: tuple[int, tuple[Any, ...]] | None = None  # first token, and what passes of one prompt have in common
        for end, decode, warm_up, text in self.passes.tolist():
            computed = self.experts[begin:end, :, 0] >= 0
            even = bool((computed.all(axis=0) | ~computed.any(axis=0)).all())
            kind = (warm_up, text, computed[0].tobytes()) if chunk and even and not decode else None
            if waiting is not None and kind != waiting[1]:
                yield from self._cut(waiting[0], begin, bool(waiting[1][0]), chunk)
                waiting = None
            if kind is None:
                yield Pass(begin, end, bool(decode), bool(warm_up))
            elif waiting is None:
                waiting = begin, kind
            begin = end
        if waiting is not None:
            yield from self._cut(waiting[0], begin, bool(waiting[1][0]), chunk)

    def _cut(self, begin: int, end: int, warm_up: bool, chunk: int | None) -> Iterator[Pass]:
        for first in range(begin, end, chunk or end - begin):
            yield Pass(first, min(first + (chunk or end), end), False, warm_up)


def read_recording(path: str | Path) -> Recording:
    """Read a trace. Raises `HeadraceError` for a file that is none.

    A trace of an earlier version, or of another engine, has no passes. Each run of prompt tokens then counts as one pass,
    and nothing precedes the first token.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        predicted = [name for name in schema.names if COLUMN.fullmatch(name)]
        complete = {"pass", "text"} <= {*schema.names}
        table = pq.read_table(path, columns=[*COLUMNS, *(("pass", "text") if complete else ()), *predicted])
        rows = {name: table[name].to_numpy() for name in table.schema.names if name not in (*predicted, "phase")}
        rows["decode"] = pc.ends_with(table["phase"].cast("string"), "decode").to_numpy()
        return _recording(str(path), rows, {name: table[name] for name in predicted}, schema.metadata or {}, complete)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as e:
        raise HeadraceError(f"trace {path} cannot be read ({first_line(e)}); give Parquet with {', '.join(COLUMNS)}") from e


def _recording(
    path: str, rows: dict[str, np.ndarray], predicted: dict[str, Any], metadata: Mapping[bytes, bytes], complete: bool
) -> Recording:
    if not len(rows["token"]):
        raise ValueError("it has no rows")
    numbers = rows["pass"] if complete else _passes_of(rows)
    in_order = (numbers.astype(np.int64) << 32) + (rows["token"] - rows["token"].min())
    _, first, token = np.unique(in_order, return_index=True, return_inverse=True)
    _, layer = np.unique(rows["layer"], return_inverse=True)
    shape = len(first), int(layer.max()) + 1, int(rows["rank"].max()) + 1
    experts = np.full(shape, -1, np.int32)
    experts[token, layer, rows["rank"]] = rows["expert"]
    of_token = numbers[first]
    ends = np.flatnonzero(np.diff(of_token, append=of_token[-1] + 1)) + 1
    last = first[ends - 1]
    text = rows["text"][last] if complete else np.zeros(len(last), np.int64)
    passes = np.column_stack([ends, rows["decode"][last], rows["token"][last] < 0, text]).astype(np.int64)
    lossy = metadata.get(b"lossy")
    fingerprint = metadata.get(b"fingerprint")
    return Recording(
        f"trace {path}", experts, passes, {_pair(n): _predictions(c, token, layer, shape) for n, c in predicted.items()},
        None if lossy is None else from_json(lossy), None if fingerprint is None else fingerprint.decode(),
        "" if complete else OLDER,
    )  # fmt: skip


def _passes_of(rows: dict[str, np.ndarray]) -> np.ndarray:
    """The pass of each row of a trace without passes: one for each run of prompt tokens, and one for each decoded token."""
    _, first, of = np.unique(rows["token"], return_index=True, return_inverse=True)
    decode = rows["decode"][first]
    begins = decode | np.diff(decode, prepend=True).astype(bool)
    return np.asarray((np.cumsum(begins) - 1)[of])


def _pair(column: str) -> tuple[int, int]:
    found = COLUMN.fullmatch(column)
    assert found is not None
    return int(found[1]), int(found[2])


def _predictions(column: Any, token: np.ndarray, layer: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A column of lists as int32 [tokens, layers, number of experts]."""
    known = np.asarray(column.is_valid())
    values = np.asarray(column.combine_chunks().flatten())
    out = np.full((*shape[:2], len(values) // max(1, int(known.sum()))), -1, np.int32)
    out[token[known], layer[known]] = values.reshape(-1, out.shape[-1])
    return out
