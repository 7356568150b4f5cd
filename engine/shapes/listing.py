"""Listing: a shape as a row of a table, and as a document with its sizes at several bits and its sources."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.knobs import GB

from .shape import Shape

COLUMNS = ("shape", "layers", "experts", "top-k", "bits", "GB", "source")
BITS = (2, 3, 4, 8)  # of conversions, in groups of 64
HUB = "https://huggingface.co/"


def row(shape: Shape) -> tuple[Any, ...]:
    """Layers with experts, experts of a layer, top-k, bits of the experts and GB as published, and the model on the hub."""
    model = shape.source.config.removeprefix(HUB).partition("/blob/")[0]
    return (
        shape.name, shape.layers, shape.experts, shape.top_k, shape.experts_format.bits, shape.total_bytes() / GB, model,
    )  # fmt: skip


def describe(shape: Shape) -> dict[str, Any]:
    """The numbers, sizes and sources of a shape. Sizes are in bytes, without multi-token prediction and vision."""
    return {
        "shape": shape.name,
        "title": shape.title,
        "has_module": shape.has_module,
        "layers": shape.layers,
        "experts": shape.experts,
        "top_k": shape.top_k,
        "parameters": shape.parameters,
        "published_parameters": shape.published_parameters,
        "sizes": [_sizes(shape, bits) for bits in (None, *BITS)],
        "checkpoints": [dataclasses.asdict(checkpoint) for checkpoint in shape.checkpoints],
        "parameters_source": shape.parameters_source,
        "source": dataclasses.asdict(shape.source),
    }


def _sizes(shape: Shape, bits: int | None) -> dict[str, Any]:
    return {
        "bits": bits or shape.experts_format.bits,
        "as_published": bits is None,
        "expert": shape.expert_bytes(bits),
        "token": shape.token_bytes(bits),
        "resident": shape.resident_bytes(bits),
        "total": shape.total_bytes(bits),
    }
