"""What the README repeats is what the code says."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

from engine import Knobs
from harness import report

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


def test_the_sample_is_what_the_report_prints(tmp_path, monkeypatch, capsys) -> None:
    shutil.copytree(ROOT / "results" / "published" / "demo_ssd_0.1", tmp_path / "demo_ssd_0.1")
    monkeypatch.chdir(ROOT)
    assert report.main([str(tmp_path / "demo_ssd_0.1")]) == 0
    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    sample = README.partition("What `make search` printed")[2].partition("![The front")[0]
    lines = [line[4:] for line in sample.splitlines() if line.startswith("    ")]
    assert len(lines) > 30
    assert [line for line in lines if line not in printed] == []
