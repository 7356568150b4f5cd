"""Recording: the passes of a trace are read back in their order, cut anew, and made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from traces import routing, write_trace

from engine.errors import HeadraceError
from engine.routing.traces.recording import OLDER, Recording, read_recording
from engine.routing.traces.table import Lines, table_of

LAYERS, TOP_K = 2, 3
EXPERTS = routing(20, LAYERS, TOP_K, 16)
# Tokens of each pass, whether it decodes, whether it belongs to the warm-up, text, and whether the last layer is computed.
PASSES = [
    (3, 0, 1, 0, 1), (1, 1, 1, 0, 1), (4, 0, 0, 1, 0), (4, 0, 0, 1, 0), (1, 0, 0, 1, 1), (1, 1, 0, 1, 1), (1, 1, 0, 1, 1),
    (2, 0, 0, 2, 1), (3, 0, 0, 3, 1),
]  # fmt: skip


def spans(recording: Recording, chunk: int | None) -> list[tuple[int, int, bool]]:
    return [(p.begin, p.end, p.decode) for p in recording.in_chunks(chunk)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines, begin, counts = Lines(), 0, [0, 0]
    for number, (tokens, decode, warm_up, text, whole) in enumerate(PASSES):
        counts[warm_up] += tokens
        layers = range(LAYERS if whole else LAYERS - 1)
        heads = np.array([(counts[warm_up], decode, warm_up, number, text, layer) for layer in layers])
        chosen = np.concatenate([EXPERTS[begin : begin + tokens, layer].reshape(-1) for layer in layers])
        predicted = [((0, "predicted_1_2"), np.array([begin, 15]))] if tokens == 1 else []
        lines.add(
            heads, np.array([(tokens, TOP_K)] * len(layers)), chosen, np.full(len(chosen), np.nan, np.float32), predicted
        )
        begin += tokens
    path = tmp_path / "t.parquet"
    pq.write_table(table_of(lines, counts[1], {"lossy": '{"expert_bits": 4}', "fingerprint": "f"}), path)
    return path


def test_a_trace_is_read_pass_by_pass(file: Path) -> None:
    recording = read_recording(file)
    expected = EXPERTS.copy()
    expected[4:12, 1] = -1
    assert np.array_equal(np.sort(recording.experts), np.sort(expected))
    ends = np.cumsum([p[0] for p in PASSES])
    assert np.array_equal(recording.passes, np.column_stack([ends, [p[1:4] for p in PASSES]]))
    assert (recording.lossy, recording.fingerprint, recording.lacks) == ({"expert_bits": 4}, "f", "")
    assert recording.predicted.keys() == {(1, 2)} and not recording.in_part
    predicted = recording.predicted[1, 2]
    assert predicted.shape == (20, 2, 2) and predicted[13, 0].tolist() == [13, 15]
    assert np.flatnonzero(predicted[:, 0, 0] >= 0).tolist() == [3, 12, 13, 14] and (predicted[:, 1] < 0).all()
    assert recording.source == f"trace {file}" and recording.shape == "20 tokens, 2 layers, top-3, experts up to 15"


def test_prompts_are_cut_anew(file: Path) -> None:
    recording = read_recording(file)
    recorded = [(end - p[0], end, bool(p[1])) for end, p in zip(np.cumsum([p[0] for p in PASSES]), PASSES, strict=True)]
    assert spans(recording, None) == recorded
    six = [(0, 3), (3, 4), (4, 10), (10, 12), (12, 13), (13, 14), (14, 15), (15, 17), (17, 20)]
    assert [p[:2] for p in spans(recording, 6)] == six  # a pass without the last layer, and texts, stay apart
    two = [
        (0, 2),
        (2, 3),
        (3, 4),
        (4, 6),
        (6, 8),
        (8, 10),
        (10, 12),
        (12, 13),
        (13, 14),
        (14, 15),
        (15, 17),
        (17, 19),
        (19, 20),
    ]
    assert [p[:2] for p in spans(recording, 2)] == two
    assert [p.warm_up for p in recording.in_chunks(2)][:4] == [True, True, True, False]


def test_a_layer_computed_for_some_tokens_of_a_pass_is_not_cut() -> None:
    recording = Recording.made_up(EXPERTS, 8)
    recording.experts[:7, 1] = -1
    assert recording.in_part and spans(recording, 4)[0] == (0, 8, False)


@pytest.mark.parametrize("prefilled", [0, 5])
def test_a_trace_of_an_earlier_version_lacks_passes(tmp_path: Path, prefilled: int) -> None:
    recording = read_recording(write_trace(tmp_path / "t.parquet", EXPERTS, prefilled))
    assert recording.lacks == OLDER and recording.lossy is None and recording.fingerprint is None
    assert spans(recording, None) == spans(Recording.made_up(EXPERTS, prefilled), None)
    assert np.array_equal(recording.experts, EXPERTS)
    assert spans(recording, 2)[:1] == ([(0, 2, False)] if prefilled else [(0, 1, True)])


def test_made_up_passes_are_one_text() -> None:
    recording = Recording.made_up(EXPERTS.astype(np.int64), 6)
    assert recording.experts.dtype == np.int32 and recording.lacks == ""
    assert spans(recording, 4) == [(0, 4, False), (4, 6, False), *((n, n + 1, True) for n in range(6, 20))]


@pytest.mark.parametrize(
    "content", ["no Parquet", {"token": [1]}, {n: [] for n in ("token", "layer", "rank", "expert", "phase")}]
)
def test_what_is_no_trace_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "t.parquet"
    if isinstance(content, str):
        path.write_text(content)
    else:
        pq.write_table(pa.table(content), path)
    with pytest.raises(HeadraceError, match=r"trace .*t.parquet cannot be read \(.*\); give Parquet with token, phase"):
        read_recording(path)
