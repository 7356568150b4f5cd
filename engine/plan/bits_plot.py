"""Bits plot: a plan of bits as a table with one row per layer, and as a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError, first_line
from engine.routing.profile import Profile

from .bits import BitsPlan, widths

INK, NONE = "#20262e", "#d9dde2"
COLOURS = ("#00224e", "#7d7c78", "#fee838")  # ends and middle of cividis, readable with colour blindness


def layer_rows(plan: BitsPlan, checkpoint: Checkpoint, profile: Profile | None) -> list[dict[str, Any]]:
    """Return one dict per layer, ready for a table.

    Its entries are the number of hot experts (no projection below the plan's high width), average bits, the share of uses at
    a low width (None without a profile), and each projection's average bits.
    """
    low = plan.bits < np.minimum(widths(checkpoint, None), plan.bits.max())
    rows = []
    for number, layer in enumerate(checkpoint.layers):
        bits, weights, cold = (part[number, : layer.experts] for part in (plan.bits, plan.weights, low))
        met = None
        if profile is not None:
            met = float(profile.frequency[number, : layer.experts] @ ((cold * weights).sum(axis=1) / weights.sum(axis=1)))
        rows.append(
            {
                "layer": number,
                "experts": layer.experts,
                "hot experts": int((~cold).all(axis=1).sum()),
                "average bits": float((bits * weights).sum() / weights.sum()),
                "uses at low bits": met,
                **{name: float(bits[:, p].mean()) for p, name in enumerate(layer.projections)},
            }
        )
    return rows


def plot_plan(plan: BitsPlan, checkpoint: Checkpoint, path: Path) -> Path:
    """Draw every layer's bits per expert, or per projection if all experts are alike; below it importance, if it differs.

    Raises `HeadraceError` if the file cannot be written.
    """
    from matplotlib.figure import Figure

    by_projection = bool((plan.bits == plan.bits[:, :1]).all())
    known = plan.weights > 0
    average = np.divide((plan.bits * plan.weights).sum(axis=2), plan.weights.sum(axis=2), where=known.any(axis=2),
                        out=np.full(plan.bits.shape[:2], np.nan))  # fmt: skip
    bits = np.where(known[:, 0], plan.bits[:, 0], np.nan) if by_projection else average
    worth = np.where(known, plan.importance, 0.0).sum(axis=1 if by_projection else 2)
    with_worth = not np.allclose(worth[worth > 0], worth.max(), atol=0)
    columns = list(checkpoint.layers[0].projections) if by_projection else None
    layers = bits.shape[0]
    panels = 1 + with_worth
    fig = Figure(figsize=(9.5, panels * min(7.0, 1.5 + 0.22 * layers) + 0.3), dpi=150, layout="constrained")
    axes = np.atleast_1d(fig.subplots(panels, 1))
    _draw_bits(fig, axes[0], bits, columns)
    axes[0].set_title(
        f"{checkpoint.name}: bits of the routed experts, {plan.average_bits:.3g} on average", loc="left",
        fontsize=11, color=INK,
    )  # fmt: skip
    if with_worth:
        _draw_worth(fig, axes[1], worth, columns)
    try:
        fig.savefig(path)
    except (OSError, ValueError) as e:
        raise HeadraceError(f"the plot {path} cannot be written ({first_line(e)}); choose another file, .png") from e
    return path


def _draw_bits(fig: Any, ax: Any, bits: np.ndarray, columns: list[str] | None) -> None:
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap

    values = np.unique(bits[~np.isnan(bits)])
    edges = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    shades = LinearSegmentedColormap.from_list("bits", COLOURS, N=256).resampled(max(len(values), 2))
    image = _image(ax, bits, columns, cmap=shades, norm=BoundaryNorm(edges, len(values)) if len(values) > 1 else None)
    bar = fig.colorbar(image, ax=ax, pad=0.015, aspect=14)
    if len(values) > 1:
        bar.set_ticks((edges[1:] + edges[:-1]) / 2, labels=[f"{v:.3g}" for v in values])
    else:
        bar.set_ticks(values, labels=[f"{values[0]:.3g}"])
    bar.set_label("bits")


def _draw_worth(fig: Any, ax: Any, worth: np.ndarray, columns: list[str] | None) -> None:
    """Draw importance, on a logarithmic scale if it spans more than a factor of 10; zero importance is grey."""
    from matplotlib.colors import LogNorm, Normalize

    least = float(np.quantile(worth[worth > 0], 0.02))  # so that a few tiny values do not take most of the colours
    scale = LogNorm(vmin=least) if worth.max() > 10 * least else Normalize(vmin=least)
    image = _image(ax, np.where(worth > 0, worth, np.nan), columns, cmap="viridis", norm=scale)
    label = "importance   (grey: none)" if (worth <= 0).any() else "importance"
    fig.colorbar(image, ax=ax, pad=0.015, aspect=14).set_label(label)


def _image(ax: Any, values: np.ndarray, columns: list[str] | None, **how: Any) -> Any:
    ax.set_facecolor(NONE)
    image = ax.imshow(values, aspect="auto", interpolation="nearest", **how)
    rows, width = values.shape
    if rows <= 64 and width <= 128:  # cells large enough for a thin grid
        ax.set_xticks(np.arange(0.5, width - 1), minor=True)
        ax.set_yticks(np.arange(0.5, rows - 1), minor=True)
        ax.grid(which="minor", color="white", linewidth=0.4)
        ax.tick_params(which="minor", length=0)
    ax.set_yticks(np.arange(0, rows, max(1, rows // 12)))
    if columns is None:
        ax.set_xticks(np.arange(0, width, max(1, 2 ** int(np.ceil(np.log2(max(width, 2) / 16))))))
        ax.set_xlabel("expert")
    else:
        ax.set_xticks(range(width), columns)
    ax.set_ylabel("layer with experts")
    for side in ax.spines.values():
        side.set_visible(False)
    return image
