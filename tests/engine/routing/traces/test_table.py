"""Table: lines become rows in the order of their passes, with lists of predictions in the rows of rank 0."""

from __future__ import annotations

import numpy as np

from engine.routing.traces.table import Lines, table_of


def test_rows_are_ordered_by_pass_token_layer_and_rank() -> None:
    lines = Lines()
    heads = np.array([(1, 1, 1, 0, 0, 0), (2, 0, 0, 1, 1, 1), (2, 0, 0, 1, 1, 0)])
    weights = np.array([0.2, 0.8, np.nan, np.nan, np.nan, np.nan, 0.6, 0.4, 0.1, 0.9], np.float32)
    predicted = [((0, "predicted_1_3"), np.array([4, 9, 1]))]
    lines.add(heads, np.array([(1, 2), (2, 2), (2, 2)]), np.arange(10), weights, predicted)
    table = table_of(lines, 1, {"top_k": "2"})
    assert table["token"].to_pylist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert table["phase"].to_pylist() == ["warm_up_decode"] * 2 + ["prefill"] * 8
    assert table["layer"].to_pylist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert table["expert"].to_pylist() == [1, 0, 6, 7, 2, 3, 9, 8, 4, 5]  # the largest weight first
    assert table["rank"].to_pylist() == [0, 1] * 5 and table["gate_weight"].null_count == 4
    assert table["pass"].to_pylist() == [0, 0] + [1] * 8 and table["text"].to_pylist() == [0, 0] + [1] * 8
    assert table["predicted_1_3"].to_pylist() == [[4, 9, 1]] + [None] * 9
    assert table.schema.metadata == {b"top_k": b"2"}


def test_an_empty_trace_has_all_columns() -> None:
    assert table_of(Lines(), 0, {}).num_rows == 0
