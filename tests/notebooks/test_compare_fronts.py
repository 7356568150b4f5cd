"""The notebook runs on the rows of any two studies, and is committed with outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from engine.system.shipped import ROOT
from harness.results.columns import NAMES
from harness.results.writing import write_row

NOTEBOOK = ROOT / "notebooks" / "compare_fronts.ipynb"


def study(folder: Path, speed: float, judge: str = "a" * 16) -> Path:
    """Rows of a made-up study, one of them out of memory and one the reference."""
    rng = np.random.default_rng(0)
    for trial in range(12):
        row = dict.fromkeys(NAMES)
        row.update(trial=trial, status="ok", origin="sampler" if trial else "reference", eval_fingerprint=judge, model="m",
                   device="d", study=folder.name, cache_gb=0.01 * trial or None, io_mode="direct")  # fmt: skip
        if trial == 5:
            row.update(status="oom", status_reason="too much")
        else:
            row.update(
                decode_tok_s=speed * rng.uniform(5, 10), peak_memory_gb=rng.uniform(0.1, 0.3), perplexity=rng.uniform(4, 9)
            )
        write_row(folder, row)
    return folder


def execute(tmp_path: Path, first: Path, second: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = f"STUDIES = {{'one': {str(first)!r}, 'two': {str(second)!r}}}\nBUDGET_GB = 0.25"
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def test_runs_on_rows_alone(tmp_path: Path) -> None:
    notebook = execute(tmp_path, study(tmp_path / "one", 1.0), study(tmp_path / "two", 2.0))
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "hypervolume" in text
    assert "share_of_best" in text
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_refuses_two_judges(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="rows of 2 sets of evaluation texts"):
        execute(tmp_path, study(tmp_path / "one", 1.0), study(tmp_path / "two", 1.0, judge="b" * 16))


def test_is_committed_with_outputs_of_real_studies() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in cells)
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.outputs)
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)
    assert str(ROOT) not in NOTEBOOK.read_text()
