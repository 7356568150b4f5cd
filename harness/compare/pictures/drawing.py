"""Drawing: a picture for a notebook, interactive where plotly's output is shown, else the static image.

An output holds both, so that a notebook on GitHub or on paper shows the image.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt

from engine.system.strict_json import from_json

from .interactive import draw_interactive
from .panel import Picture
from .static import draw_static

PLOTLY = "application/vnd.plotly.v1+json"


@dataclass(frozen=True)
class Drawing:
    """A picture that a notebook shows. `static`: the image alone."""

    picture: Picture
    static: bool = False

    def png(self) -> bytes:
        """The image, as PNG."""
        figure, held = draw_static(self.picture), io.BytesIO()
        figure.savefig(held, format="png")
        plt.close(figure)
        return held.getvalue()

    def figure(self) -> Any:
        """The figure of plotly, for `write_html` and the like."""
        return draw_interactive(self.picture)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"image/png": self.png(), "text/plain": self.picture.title}
        if not self.static:
            bundle[PLOTLY] = from_json(self.figure().to_json())
        return bundle
