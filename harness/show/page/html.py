"""HTML: the page of a study as one file, with its style, its script and plotly inside, and no other address in it.

Everything but the charts is there without JavaScript; the plots of the study stand in for the charts then. Every text of the
rows is escaped. A chart that cannot be drawn leaves a line and the tables.
"""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engine import __version__
from engine.system.strict_json import to_json
from harness.results.files import write_text
from harness.show.costs import costs
from harness.show.hours import HEADERS, hours_lines, hours_rows
from harness.show.lines import contribution, forecast, health, undecided, violations
from harness.show.tables import importance_rows

from . import facts
from .figures import figures, important
from .summary import Summary
from .tables import forecast_cells, front_cells, recommended_cells, trial_cells

NAME = "report.html"
SHARED = 20  # length of a list from which it is worth to be written once
HERE = Path(__file__).parent
PICTURE_BYTES = 250_000  # a larger plot is left out, because plotly itself takes 4.8 MB of 8


def write_page(summary: Summary) -> Path:
    """Write `report.html` into the study's folder, atomically; returns its path. Raises `ResultsError` if it cannot."""
    path = summary.folder / NAME
    write_text(path, page(summary))
    return path


def page(summary: Summary) -> str:
    """The page as text."""
    drawn, failed = _charts(summary)
    head, rows = importance_rows(summary.importance)
    some = bool(len(summary.df))
    return str(
        _template().render(
            summary=summary, facts=facts, version=__version__, sentences=facts.sentences(summary),
            recommended=recommended_cells(summary) if len(summary.front) else None,
            front=front_cells(summary) if len(summary.front) else None,
            commands=facts.commands(summary), trials=trial_cells(summary), identity=facts.identity(summary),
            charts=drawn, packed=_packed(drawn), failed=failed, plotly=Markup(_plotly() if drawn else ""),
            style=_file("page.css"), script=_file("page.js"),
            pictures={name: _picture(summary.folder / name) for name in ("front.png", "session.png")},
            importance_head=head, importance_rows=rows, important=important(summary),
            health=[*violations(summary.df), *undecided(summary.standings), *health(summary.df), *costs(summary.df)]
            if some
            else [],
            failures=facts.failures(summary.df), saved=facts.saved_rows(summary), hour_headers=HEADERS,
            hour_lines=hours_lines(summary.hours), hour_rows=hours_rows(summary.hours) if summary.hours.runs else [],
            memory=facts.memory_forecast(summary), speed=forecast(summary.df) if some else [],
            forecasts=forecast_cells(summary.df) if some else None,
            contribution=contribution(summary.found) if len(summary.front) else [],
        )
    )  # fmt: skip


def _packed(charts: dict[str, list[dict[str, Any]]]) -> Markup:
    """The figures as JSON that can stand inside a page, where a list that several traces share is written once."""
    lists: dict[str, int] = {}

    def packed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: packed(part) for key, part in value.items()}
        if isinstance(value, list) and len(value) >= SHARED and not isinstance(value[0], dict):
            return {"$": lists.setdefault(_json(value), len(lists))}
        return [packed(part) for part in value] if isinstance(value, list) else value

    found = _json(packed(charts))
    text = f'{{"lists":[{",".join(lists)}],"charts":{found}}}'
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _json(value: Any) -> str:
    return to_json(value, separators=(",", ":"), ensure_ascii=True)


def _charts(summary: Summary) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The figures by section, and the reason if they could not be made: the report of a long search must not be lost."""
    try:
        found = {name: some for name, some in figures(summary).items() if some}
        return (found, "") if _plotly() or not found else ({}, "plotly has no script")
    except Exception as e:
        return {}, f"{type(e).__name__}: {e}"


@functools.cache
def _plotly() -> str:
    """The script of plotly.js. No `</script` is in it, so that it can stand inside a page."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


@functools.cache
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["capitalise"] = lambda text: text[:1].upper() + text[1:]  # Jinja's own lowers the rest
    return environment.get_template("report.html.j2")


def _file(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _picture(path: Path) -> str:
    """A plot as a data address; empty if there is none, or if it is too large."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    if len(content) > PICTURE_BYTES:
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
