"""Interactive pictures: draws a picture with plotly; hovering shows the knobs of a point."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.show.plots.figure import INK

from .panel import Panel, Picture, Series

PIXELS = 96  # an inch
WIDTH = 1180


def draw_interactive(picture: Picture) -> Any:
    """The picture as a figure of plotly."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fig = make_subplots(
        1, len(picture.panels), subplot_titles=[p.title for p in picture.panels], shared_yaxes=picture.shared_rows,
        horizontal_spacing=0.03 if picture.shared_rows else 0.3 if any(p.rows for p in picture.panels[1:]) else 0.07,
    )  # fmt: skip
    shown: set[str] = set()
    for k, panel in enumerate(picture.panels, 1):
        for one in panel.series:
            for trace in _traces(go, one, one.legend and one.name not in shown):
                fig.add_trace(trace, row=1, col=k)
            shown |= {one.name} if one.legend else set()
        _axes(fig, panel, k)
    title = f"<b>{picture.title}</b>" + (f"<br><sup>{picture.note}</sup>" if picture.note else "")
    fig.update_layout(
        title={"text": title, "x": 0.01, "font": {"size": 16}}, template="plotly_white", width=WIDTH,
        height=round(picture.height * PIXELS) + 90, margin={"t": 100, "b": 60, "l": 60, "r": 20}, barmode="stack",
        legend={"orientation": "h", "y": -0.18, "x": 0}, font={"color": INK, "size": 12},
    )  # fmt: skip
    fig.update_annotations(font={"size": 13}, xanchor="center")
    return fig


def _axes(fig: Any, panel: Panel, k: int) -> None:
    x: dict[str, Any] = {"title": {"text": panel.x_title, "standoff": 6}}
    y: dict[str, Any] = {"title": {"text": panel.y_title, "standoff": 4}}
    if panel.rows:
        y |= {"tickvals": list(range(len(panel.rows))), "ticktext": list(panel.rows), "range": [len(panel.rows) - 0.5, -0.5],
              "showgrid": False, "zeroline": False}  # fmt: skip
    elif panel.y_range:
        y["range"] = list(panel.y_range)
    if panel.log_x:
        x |= {"type": "log", "dtick": "D2", "tickformat": "~g"}
    if panel.x_range:
        x["range"] = list(np.log10(panel.x_range)) if panel.log_x else list(panel.x_range)
    fig.update_xaxes(**x, row=1, col=k)
    fig.update_yaxes(**y, row=1, col=k)
    if panel.line_at is not None:
        fig.add_vline(panel.line_at, line={"color": INK, "width": 1}, row=1, col=k)


def _traces(go: Any, one: Series, legend: bool) -> list[Any]:
    color = one.look.color
    common: dict[str, Any] = {"name": one.name, "legendgroup": one.name, "showlegend": legend}
    quiet: dict[str, Any] = {"hoverinfo": "skip", "line": {"width": 0, "shape": "hv"}, "mode": "lines"}
    if one.kind == "band":
        fill = {"fill": "tonexty", "fillcolor": _faded(color, one.opacity)}
        return [go.Scatter(x=one.x, y=one.y, **common | {"showlegend": False}, **quiet),
                go.Scatter(x=one.x, y=one.y2, **common, **quiet, **fill)]  # fmt: skip
    if one.kind == "line":
        line = {"color": color, "dash": one.look.dash, "shape": "hv", "width": 2}
        return [go.Scatter(x=one.x, y=one.y, mode="lines", line=line, hoverinfo="skip", **common)]
    if one.kind == "bars":
        assert one.x2 is not None
        marker = {"color": color, "opacity": one.opacity, "line": {"color": "white", "width": 1}}
        return [go.Bar(x=one.x2 - one.x, y=one.y, base=one.x, orientation="h", width=0.62, marker=marker, text=one.label,
                       textposition="inside", insidetextanchor="middle", textfont={"color": INK},
                       hovertext=one.text, hoverinfo="text", **common)]  # fmt: skip
    marker = {"color": color if one.filled else "white", "symbol": one.look.symbol, "size": one.size * 1.5,
              "opacity": one.opacity, "line": {"color": color, "width": 0.5 if one.filled else 1.8}}  # fmt: skip
    return [go.Scatter(x=one.x, y=one.y, mode="markers", marker=marker, hovertext=list(one.text) or None,
                       hoverinfo="text" if one.text else "skip", error_x=_bars(one.x, one.x_ends, color),
                       error_y=_bars(one.y, one.y_ends, color), **common)]  # fmt: skip


def _bars(values: np.ndarray, ends: np.ndarray | None, color: str) -> dict[str, Any] | None:
    if ends is None:
        return None
    up, down = (np.nan_to_num(np.maximum(some, 0)) for some in (ends[1] - values, values - ends[0]))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": color, "thickness": 1, "width": 0}


def _faded(color: str, opacity: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
