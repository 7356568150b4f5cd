"""Markdown to paste: the recommended settings, nothing private, and no mark that a study's name could inject."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from made import rows_of, summary_of

from engine import Knobs
from engine.__main__ import parser as _parser
from harness.show.page.share import markdown
from harness.show.page.tables import recommended_cells


def test_the_block(tmp_path: Path) -> None:
    command = "python -m harness.search model.path=/home/alice/models/k storage.url=postgresql://u:pw@db.local/x"
    summary = summary_of(tmp_path, rows_of(study="a|b <script> `x`"), command=command)
    text = markdown(summary)
    for row in recommended_cells(summary).rows:
        assert f"| {' | '.join(cell.text for cell in row)} |" in text
    assert "model.path=~/models/k storage.url=URL" in text and "### Headrace: a\\|b &lt;script&gt; \\`x\\`" in text
    assert "0123abcd" not in text and "alice" not in text and "pw@" not in text and str(tmp_path.parent) not in text
    assert "- machine: M9, 8 cores" in text and "- versions: headrace 0.2, MLX 0.32" in text


def test_a_study_without_a_front(tmp_path: Path) -> None:
    text = markdown(summary_of(tmp_path, [r for r in rows_of() if r["status"] == "oom"]))
    assert "the last error was: out of memory" in text and "| setting |" not in text


def test_the_options_are_those_that_generate_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.show.page.share.setting_of", lambda _: Knobs(cache_gb=1.5, top_k=2))
    text = markdown(summary_of(tmp_path, rows_of()))
    words = next(line for line in text.splitlines() if line.startswith("python -m engine generate"))
    args = _parser("engine").parse_args(shlex.split(words)[3:])
    assert (args.cache_gb, args.top_k, args.sample_top_k) == (1.5, 2, 0)
