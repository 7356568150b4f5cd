"""The notebook runs on the rows of any studies, outside the checkout, and is committed with outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from two_studies import study

from engine.system.shipped import ROOT
from harness.compare.pictures.drawing import PLOTLY

NOTEBOOK = ROOT / "notebooks" / "compare_fronts.ipynb"


def execute(tmp_path: Path, *folders: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    studies = {folder.name: str(folder) for folder in folders}
    parameters.source = f"STUDIES = {studies!r}\nSTATIC = False\nBUDGET_GB = 0.13"
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def test_runs_on_the_rows_of_three_studies(tmp_path: Path) -> None:
    folders = [study(tmp_path / name, seed, factor=factor) for seed, (name, factor) in enumerate((("one", 1), ("two", 1.5),
               ("three", 0.8)))]  # fmt: skip
    outputs = [o for c in execute(tmp_path, *folders).cells for o in c.get("outputs", [])]
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "hypervolume ratio" in text and "cache_gb" in text and "three" in text
    assert sum({"image/png", PLOTLY} <= set(o.get("data", {})) for o in outputs) == 4


def test_refuses_two_sets_of_texts(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="rows of 2 sets of evaluation texts"):
        execute(tmp_path, study(tmp_path / "one"), study(tmp_path / "two", 1, eval_fingerprint="c" * 16))


def test_is_committed_with_outputs_of_real_studies() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in cells)
    assert sum("image/png" in o.get("data", {}) for c in cells for o in c.outputs) == 4
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)
    assert str(ROOT) not in NOTEBOOK.read_text() and NOTEBOOK.stat().st_size < 1 << 20
