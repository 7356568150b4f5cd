"""Studies of the page's tests: rows of a simulated search, their summary, and the cells of a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import searched, streamed

from harness.show.page.summary import Summary

START = datetime(2026, 1, 1, tzinfo=UTC)


def rows_of(count: int = 24, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """A study with anchors, a reference, fresh runs of the fastest, a sentinel, and trials that violate, fail or are
    pruned. The default, trial 1, is lossless."""
    rng = np.random.default_rng(seed)
    rows = [{**r, "origin": "anchor" if r["trial"] <= 3 else "sampler"} for r in searched(seed, streamed, count)]
    rows[0]["expert_bits"] = None
    rows.append({**rows[0], "trial": 0, "origin": "reference", "cache_gb": None, "decode_tok_s": 50.0})
    best = max(rows[:count], key=lambda r: r["decode_tok_s"])
    for run, origin, first in ((1, "confirm", best), (2, "confirm", best), (1, "sentinel", rows[0])):
        noisy = first["decode_tok_s"] * float(np.exp(0.02 * rng.normal()))
        rows.append(
            {**first, "run": run, "origin": origin, "decode_tok_s": noisy, "drift": 1.0 if origin == "sentinel" else None}
        )
    figures = dict.fromkeys(("decode_tok_s", "peak_memory_gb", "perplexity"))
    ends = (("oom", "out of memory: 3.1 GB"), ("crash", "exit status 1"), ("infeasible", "would take 9 GB"))
    for i, (status, reason) in enumerate(ends if count > 5 else ()):
        rows.append(
            {**rows[i], **figures, "trial": count + 1 + i, "status": status, "status_reason": reason, "saved_s": 3.0}
        )
    if count > 5:
        rows.append({**rows[4], "trial": count + 4, "feasible": False, "violated": "perplexity <= 5", "decode_tok_s": 99.0})
    shared = {"wall_s": 2.0, "study": "made", "model": "tiny", "cpu": "M9", "cores": 8, "machine": "0123abcd", "round": 1,
              "predicted_peak_gb": 0.02, "mlx": "0.32", "headrace_version": "0.2"}  # fmt: skip
    return [
        {**r, **shared, "row_id": f"{r['trial']}-{r['run']}", "started_at": START + timedelta(seconds=3 * i), **more}
        for i, r in enumerate(rows)
    ]


def summary_of(folder: Path, rows: list[dict[str, Any]], **manifest: Any) -> Summary:
    if manifest:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return Summary(folder, rows)


class Cells(HTMLParser):
    """The tables of a page: id -> rows of (text, data-value); `text` is all text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self.tags: list[str] = []
        self.text, self._table, self._quiet = "", "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._quiet = tag in ("script", "style")
        if tag == "table":
            self._table = given.get("id") or ""
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append(("", given.get("data-value")))

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self._quiet:
            return
        self.text += data
        if self._table and self.tables[self._table] and self.tables[self._table][-1]:
            row = self.tables[self._table][-1]
            row[-1] = (row[-1][0] + data, row[-1][1])
