"""What the README repeats is what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from engine import Knobs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_knobs_is_current() -> None:
    assert Knobs.table() in README, "paste the output of `python -m engine knobs` into README.md"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_example_runs(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(ROOT)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example
    script = tmp_path / "example.py"
    script.write_text(example[1])
    assert runpy.run_path(str(script))["e"].stats.hits > 0
