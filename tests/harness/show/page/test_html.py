"""The page: numbers, escaping, sizes, and what is left if a chart cannot be drawn; then the same in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from made import Cells, rows_of, summary_of

from harness.analysis.pareto import front
from harness.results.rows import frame
from harness.show.page import html
from harness.show.page.html import page, write_page

EVIL = "</script><script>document.title='evil'</script><img src=x onerror=alert(1)>"
METRICS = ("decode_tok_s", "peak_memory_gb", "perplexity")


def test_the_numbers_are_those_of_the_front(tmp_path: Path) -> None:
    rows = rows_of()
    cells = Cells(page(summary_of(tmp_path, rows)))
    best = front(frame(rows))
    shown = {int(row[0][0]): row for row in cells.tables["front-table"][1:]}
    assert list(shown) == [*best.index, 0]
    for trial, point in best.iterrows():
        assert [float(value or "nan") for _, value in shown[int(str(trial))][1:4]] == [point[m] for m in METRICS]
    assert len(cells.tables["trials-table"]) == 1 + 29
    assert f"{len(best)} settings, {int(best['confirmed'].sum())} of them confirmed" in cells.text


def test_forecasts_have_a_section(tmp_path: Path) -> None:
    text = page(summary_of(tmp_path, rows_of(forecast_tok_s=40.0, forecast_tok_s_low=30.0, forecast_tok_s_high=55.0)))
    assert "Speed forecast before the first run of 26 settings: median error" in text and 'id="forecast-table"' in text
    assert "forecast-table" not in page(summary_of(tmp_path, rows_of()))


def test_texts_of_the_rows_are_inert(tmp_path: Path) -> None:
    rows = rows_of(study=EVIL, model=EVIL, cpu=EVIL, eval_texts=EVIL, os=EVIL, space=EVIL)
    rows = [
        {**r, "status_reason": EVIL} if r["status"] == "oom" else {**r, "violated": r["violated"] and EVIL} for r in rows
    ]
    config: dict[str, Any] = {"search_space": {EVIL: 1}, "constraints": [EVIL], "protocol": {EVIL: EVIL}}
    text = page(summary_of(tmp_path, rows, command=EVIL, config=config))
    cells = Cells(text)
    assert "<img src=x" not in text and "<script>document" not in text
    assert cells.tags.count("script") == Cells(page(summary_of(tmp_path, rows_of()))).tags.count("script") == 3
    assert EVIL in cells.text


def test_the_page_names_no_other_address(tmp_path: Path) -> None:
    text = page(summary_of(tmp_path, rows_of()))
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?://|\bsrc=\"(?!data:)|<link|@import", own)
    assert "default-src 'none'" in own


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([], "No trial has run yet."),
        ([0], "no streamed trial has run"),
        ([1], "it is the default itself"),
        ([25, 26], "the last error was: exit status 1"),
        ([28], "There is no front"),
    ],
)
def test_small_studies_have_a_page_that_says_so(keep: list[int], said: str, tmp_path: Path) -> None:
    text = Cells(page(summary_of(tmp_path, [r for r in rows_of() if r["trial"] in keep]))).text
    assert said in text and not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_a_chart_that_cannot_be_drawn_leaves_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(summary: Any) -> Any:
        raise ValueError("no <b>such</b> axis")

    monkeypatch.setattr(html, "figures", broken)
    text = write_page(summary_of(tmp_path, rows_of())).read_text(encoding="utf-8")
    assert "could not be drawn (ValueError: no &lt;b&gt;such" in text and len(text) < 200_000
    assert Cells(text).tables["front-table"]


def test_plots_stand_in_for_charts_without_a_script(tmp_path: Path) -> None:
    (tmp_path / "front.png").write_bytes(b"png")
    (tmp_path / "session.png").write_bytes(b"x" * (html.PICTURE_BYTES + 1))
    text = page(summary_of(tmp_path, rows_of()))
    assert text.count('<noscript><img src="data:image/png;base64,cG5n"') == 1


def test_five_thousand_trials_stay_below_eight_megabytes(tmp_path: Path) -> None:
    path = write_page(summary_of(tmp_path, rows_of(5000)))
    assert path.stat().st_size < 8_000_000 - 4 / 3 * 2 * html.PICTURE_BYTES


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome on the path")
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return write_page(summary_of(folder, rows_of(40, study=EVIL), command="python -m harness.search study=demo"))


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_chromium_the_page_fits_and_draws(browser: Browser, written: Path, width: int, dark: bool) -> None:
    browser.open(written, width, dark=dark)
    root = "document.documentElement"
    assert browser.value(f"{root}.scrollWidth <= {root}.clientWidth") is True
    assert browser.value("document.querySelectorAll('.plot svg.main-svg').length >= 12") is True
    assert browser.value("document.title").endswith("report") and browser.errors == []
    shown = browser.value("getComputedStyle(document.querySelector('.plot .xtitle')).fill")
    assert shown == ("rgb(230, 234, 238)" if dark else "rgb(32, 38, 46)")
    assert browser.value("performance.getEntriesByType('resource').length") == 0


def test_in_chromium_a_header_sorts(browser: Browser, written: Path) -> None:
    browser.open(written, 1440)
    column = "[...document.querySelectorAll('#trials-table tbody tr')].map(r => r.cells[2].textContent)"
    header = "document.querySelectorAll('#trials-table th')[2]"
    orders = []
    for _ in range(2):
        browser.value(f"{header}.querySelector('button').click()")
        orders.append([float(text.split()[0]) for text in browser.value(column) if text])
        orders.append(browser.value(f"{header}.getAttribute('aria-sort')"))
    assert orders[0] == sorted(orders[0]) and orders[2] == sorted(orders[2], reverse=True)
    assert (orders[1], orders[3]) == ("ascending", "descending")


def test_in_chromium_a_point_shows_its_knobs(browser: Browser, written: Path) -> None:
    browser.open(written, 1440)
    texts = browser.value(
        "document.querySelector('.plot').data.filter(t => t.customdata).map(t => [t.customdata[0], t.text?.[0]])"
    )
    trial, text = texts[0]
    assert f"<b>trial {trial}</b>: dominated" in text and "cache_gb 0.0" in text and "read_threads " in text


def test_in_chromium_without_a_script_the_tables_are_there(browser: Browser, written: Path) -> None:
    browser.open(written, 390, script=False)
    assert browser.value("document.querySelector('#recommended-table').getBoundingClientRect().height > 100") is True
    assert browser.value("getComputedStyle(document.querySelector('.chart')).display") == "none"
    browser.open(written, 390)  # scripts are on again
