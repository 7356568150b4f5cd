"""Architecture: whether mlx-lm can build a model of a given type."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path


@functools.cache
def has_architecture(model_type: str) -> bool:
    """Return whether mlx-lm has a model of this type, as a file of that name or in its table of aliases."""
    spec = importlib.util.find_spec("mlx_lm")
    places = spec.submodule_search_locations if spec else None
    if any((Path(place) / "models" / f"{model_type}.py").exists() for place in places or ()):
        return True
    from mlx_lm.utils import MODEL_REMAPPING  # importing it takes about a second

    return model_type in MODEL_REMAPPING
